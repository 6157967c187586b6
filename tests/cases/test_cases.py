"""Inputs that users met, each with what is right: `pytest tests/cases` runs every folder here that has a case.yaml.

A new case is a new folder: its input files and a case.yaml of one of the kinds in `expectations`, which also says how
a new kind is made.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from expectations import read_case
from public_data import FOLDER

HERE = Path(__file__).parent
CASES = sorted(path.parent for path in HERE.glob("*/case.yaml"))
# The collection that most of the cases come from; it lies beside the data that `public_data` finds.
HANDED = FOLDER.parent / "cases" / "data"


@pytest.mark.parametrize("folder", CASES, ids=lambda folder: folder.name)
def test_case(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    read_case(folder).check(folder, tmp_path, caplog)


def test_every_folder_is_a_case():
    folders = {path for path in HERE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders == set(CASES)


def test_no_case_of_the_collection_is_forgotten():
    if not HANDED.is_dir():
        pytest.skip(f"the collection of cases is not beside the public data ({HANDED})")
    here = {folder.name for folder in CASES}
    assert {path.name for path in HANDED.iterdir() if path.is_dir()} <= here
