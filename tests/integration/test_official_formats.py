"""BFCL's category format_sensitivity, all of it, against bfcl-eval's own verdicts."""

import importlib.util

import format_answers
import official_bfcl
import pytest
from bfcl_gold import UNANSWERABLE

from rest_core.evaluation.bfcl.format_sensitivity import question_of
from rest_core.evaluation.bfcl.formats import FORMATS

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")


def test_right_answers_are_right_in_every_format(tmp_path):
    report = format_answers.run(format_answers.scripted(["right"]), tmp_path)
    wrong = {(question_of(row["id"]), row["category"]) for row in report.rows if not row["valid"]}
    # The official JSON reader ends at the first "}]": a list of objects in an argument is cut there.
    assert len(report.rows) == 5200 and not UNANSWERABLE & {question for question, _ in wrong}
    assert wrong == {("simple_python_96", name) for name in FORMATS if name.startswith("format_json_")}


@pytest.mark.parametrize("shift", range(3))
def test_verdicts_and_error_types_of_corrupted_answers_are_official(shift, tmp_path):
    texts = format_answers.scripted(format_answers.KINDS, shift * 11)
    report = format_answers.run(texts, tmp_path)
    ours = {row["id"]: row["error_type"] for row in report.rows if not row["valid"]}
    assert 1000 < len(ours) < 5000
    assert ours == official_bfcl.formats(tmp_path, texts)
    assert official_bfcl.evaluate(tmp_path, "format_sensitivity").keys() == ours.keys()
