from __future__ import annotations

import base64
import re
import sys
from datetime import datetime, timezone
from xml.etree import ElementTree

import numpy as np
import pytest
from localize_core.errors import MissingExtraError, PublishError
from localize_core.evaluation.bound import area_box_m
from localize_core.evaluation.evaluate import evaluate, usual_baselines
from localize_core.evaluation.report import write_report
from localize_core.evaluation.summary import breakdowns, comparison, metres, percent, title_of
from localize_core.model.compiled.compile import compile_model
from localize_core.model.onnx_model import OnnxModel

ORIGIN = {
    "data": "a <toy> scene & more",
    "split": "test, nothing tuned on it",
    "command": "gr-localize evaluate m.onnx",
}


class Mixed:
    """Several sources after another."""

    def __init__(self, *parts):
        self.parts = parts
        self.contract, self.time_steps = parts[0].contract, parts[0].time_steps

    def __len__(self):
        return sum(map(len, self.parts))

    def batches(self, size):
        for part in self.parts:
            yield from part.batches(size)


@pytest.fixture(scope="module")
def compiled(make_spec, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    compile_model(make_spec(), path)
    return OnnxModel(path)


@pytest.fixture(scope="module")
def evaluation(compiled, make_source):
    source = Mixed(make_source(30, snr_db=-6.0), make_source(30, snr_db=22.0, seed=2))
    baselines, missing = usual_baselines(source, box_m=area_box_m(make_source(1).spec.area), compiled=compiled)
    return evaluate(compiled, source, baselines=baselines, notes=missing, spec=make_source(1).spec)


@pytest.fixture
def page(evaluation, make_source, tmp_path):
    now = datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc)
    path = write_report(
        evaluation, tmp_path / "new" / "report", box_m=area_box_m(make_source(1).spec.area), origin=ORIGIN, now=now
    )
    assert path == tmp_path / "new" / "report" / "index.html"
    return path.read_text(encoding="utf-8")


def test_the_page_needs_nothing_beside_itself(page):
    assert re.findall(r'(?:src|href)="(?!data:|#)', page) == []
    assert "url(" not in page
    assert "http" not in page.replace("http://www.w3.org", "").split("<body>")[0]


def test_the_page_has_every_plot(page):
    assert re.findall(r'<section id="(\w+)">', page) == ["map", "cdf", "calibration", "snr", "reliability"]
    images = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(images) == 5
    for image in images:
        assert ElementTree.fromstring(base64.b64decode(image)).tag == "{http://www.w3.org/2000/svg}svg"


def test_the_page_says_where_it_comes_from(page, evaluation):
    assert "<h1>compiled-test, version 1</h1>" in page
    assert "Evaluated on a &lt;toy&gt; scene &amp; more" in page  # nothing of a file's text is markup
    for text in (evaluation.model.sha256, ORIGIN["split"], ORIGIN["command"], "2026-01-02 03:04 UTC", "&#34;kind&#34;"):
        assert text in page or text.replace("&#34;", '"') in page
    assert "60 windows: 48 with an emitter in the area, 6 without emitter, 6 with one outside the area." in page
    assert "Without kNN-5: there are no training windows to be near to." in page


def test_the_page_has_the_figures(page, evaluation):
    text = re.sub(r"<[^>]+>", " ", page)
    found = evaluation.figures["model"].accuracy
    assert metres(found.median_m) in text
    assert percent(found.containment["95"].share) in text
    assert f"× {evaluation.bound.with_area_ratio['model']:.2f}" in text
    for row in evaluation.figures["tdoa"].by_snr:
        assert row.label in text


def test_the_same_evaluation_gives_the_same_page(evaluation, tmp_path):
    now = datetime(2026, 1, 2, tzinfo=timezone.utc)
    one, two = (write_report(evaluation, tmp_path / name, now=now).read_bytes() for name in "ab")
    assert one == two


def test_a_model_that_never_answers_still_has_a_page(compiled, make_source, tmp_path):
    source = make_source(9, period=1)  # nothing but noise
    found = evaluate(compiled, source)
    text = write_report(found, tmp_path).read_text()
    assert re.findall(r'<section id="(\w+)">', text) == ["reliability"]
    assert "No Cramér–Rao bound: nothing is known of the scene." in text


def test_a_page_that_cannot_be_written(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PublishError, match=r"file/index\.html: cannot be written"):
        write_report(evaluation, tmp_path / "file")


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_names_the_extra(evaluation, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MissingExtraError, match=r"a report needs an optional package: .* -m pip install 'gr-localize\[report\]'"
    ):
        write_report(evaluation, tmp_path)


def test_tables_are_as_wide_as_their_columns(evaluation):
    for table in (comparison(evaluation), *breakdowns(evaluation)):
        assert table.columns
        assert all(len(cells) == len(table.columns) for section in table.sections for _, cells in section)
    assert [table.title for table in breakdowns(evaluation)] == [
        "Median receiver's SNR, dB",
        "Receivers that hear the emitter",
    ]


def test_the_comparison_holds_both_sides(evaluation):
    table = comparison(evaluation)
    assert table.columns == ("model", "compiled", "TDOA", "centroid")
    rows = {label: cells for section in table.sections for label, cells in section}
    assert rows["answered"] == ("48 of 48",) * 4
    assert rows["median error"][0] == rows["median error"][1] == metres(evaluation.figures["model"].accuracy.median_m)
    assert rows["truth in ellipse of 95 %"][3] == "–"
    assert rows["RMSE / bound"][0] == f"{evaluation.bound.ratio['model']:.2f}"
    assert rows["confidence, no emitter"][2] == "–"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.123456, "0.12 m"),
        (9.991, "9.99 m"),
        (9.996, "10.0 m"),
        (99.4, "99.4 m"),
        (99.96, "100 m"),
        (1234.5, "1,234 m"),
        (9996.0, "10.0 km"),
        (1.5e6, "1,500 km"),
    ],
)
def test_metres_have_three_digits(value, text):
    assert metres(value) == text


def test_names_for_people():
    assert [title_of(name) for name in ("model", "tdoa", "knn7", "other")] == ["model", "TDOA", "kNN-7", "other"]
    assert (percent(None), percent(np.float64(0.5))) == ("–", "50.0 %")
