import json

import pytest

from rest_core.errors import UserError
from rest_core.evaluation.evaluation_report import EvaluationReport, write_jsonl
from rest_core.evaluation.statistics import Accuracy


def report() -> EvaluationReport:
    scores = {"simple": Accuracy(3, 4), "parallel": Accuracy(0, 16), "relevance": Accuracy(16, 16)}
    rows = [{"id": "simple_0", "valid": True, "response": "lone \ud800 surrogate\n"}]
    metrics = {"bfcl/simple": 0.75}
    return EvaluationReport(
        "BFCL",
        "m",
        scores,
        {"overall": 0.5},
        metrics,
        rows,
        subset="36 of 99 questions",
        notes=("greedy",),
        template="T {tools}",
    )


def test_files_of_a_report(tmp_path):
    report().write(tmp_path / "new")
    folder = tmp_path / "new"
    assert sorted(p.name for p in folder.iterdir()) == ["accuracy.png", "report.json", "report.md", "rows.jsonl"]
    summary = json.loads((folder / "report.json").read_text())
    assert summary["scores"]["simple"]["accuracy"] == 0.75
    low, high = summary["scores"]["parallel"]["interval_95"]
    assert low == 0
    assert high == pytest.approx(0.1936, abs=1e-4)  # z² / (16 + z²)
    text = (folder / "report.md").read_text()
    assert "- SUBSET: 36 of 99 questions\n- greedy\n" in text
    assert "T {tools}" in text
    assert summary["subset"] == "36 of 99 questions"
    assert "| simple | 3 | 4 | 75.0% | 30.1% – 95.4% |" in text
    assert "| overall | 50.0% |" in text
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_rows_survive_text_that_is_no_utf8(tmp_path):
    report().write(tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text(encoding="ascii").splitlines()
    assert [json.loads(line) for line in lines] == report().rows


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "rows.jsonl"
    target.write_text("old\n")
    with pytest.raises(TypeError):
        write_jsonl(target, [{"bad": object()}])
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert target.read_text() == "old\n"


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(UserError, match="disk is full"):
        report().write(tmp_path)
    assert list(tmp_path.iterdir()) == []
