"""What tests of every room use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The recordings and channel data sets, which are not part of the repository."""
    folder = Path(os.environ.get("GR_LOCALIZE_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set GR_LOCALIZE_DATA to where it is")
    return folder
