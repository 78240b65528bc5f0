from __future__ import annotations

import sys

import pytest
from localize_core.wire.xml_text import xml_text
from lxml import etree


def test_every_character_that_is_kept_comes_back():
    kept = [chr(code) for code in range(sys.maxunicode + 1) if xml_text(chr(code)) == chr(code)]
    assert len(kept) > 1_000_000
    text = "".join(kept)
    element = etree.Element("text", attribute=text)
    element.text = text
    read = etree.fromstring(etree.tostring(element, encoding="utf-8"))
    assert read.text == read.get("attribute") == text


@pytest.mark.parametrize("character", ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\ud800", "\ufffe"])
def test_others_are_replaced(character):
    assert xml_text(f"a{character}b") == "a\ufffdb"
