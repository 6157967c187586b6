import json

import pytest

from rest_core.errors import UserError
from rest_core.evaluation.benchmark import Figures
from rest_core.evaluation.evaluation_report import EvaluationReport, write_jsonl
from rest_core.evaluation.measurement import Measurement
from rest_core.evaluation.statistics import Accuracy, Average

MEASURED = Measurement(
    benchmark="bfcl", items="a" * 64, condition="style", template="b" * 64, limits={}, checker="c 1", rules=("valid",)
)


def row(number: int, category: str, kind: str | None, response: str = "x") -> dict[str, object]:
    return {
        "id": f"{category}_{number}",
        "category": category,
        "valid": kind is None,
        "kind": kind,
        "error": "bad | `value`" if kind else None,
        "skipped": None,
        "question": [{"role": "user", "content": "Which\nfile?"}],
        "expected": [{"name": "open", "arguments": {}}],
        "response": response,
    }


def report() -> EvaluationReport:
    scores = {"simple": Accuracy(3, 4), "parallel": Accuracy(0, 16), "relevance": Accuracy(16, 16)}
    mean = Average(scores, {"simple": 0.5, "parallel": 0.25, "relevance": 0.25})
    rows = [
        row(0, "simple", None, "lone \ud800 surrogate\n"),
        row(1, "simple", "wrong value", "```\n</details>\x1b[2J"),
        row(2, "simple", "wrong value"),
        row(0, "parallel", "no call", ""),
    ]
    return EvaluationReport(
        "BFCL",
        "m",
        Figures(scores, {"mean": mean}, headline=("mean", "relevance", "not measured")),
        {"bfcl/simple": 0.75},
        rows,
        MEASURED,
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
    assert summary["measured"] == MEASURED.model_dump(mode="json")
    text = (folder / "report.md").read_text()
    assert "- SUBSET: 36 of 99 questions\n- greedy\n" in text
    assert "T {tools}" in text
    assert summary["subset"] == "36 of 99 questions"
    assert "| simple | 75.0% | 30.1% – 95.4% | 3 | 4 |" in text
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_headline_figures_stand_side_by_side_with_intervals(tmp_path):
    report().write(tmp_path)
    summary = json.loads((tmp_path / "report.json").read_text())
    assert list(summary["headline"]) == ["mean", "relevance"]
    low, high = summary["headline"]["mean"]["interval_95"]
    assert low < summary["headline"]["mean"]["accuracy"] == 0.625 < high
    assert summary["averages"]["mean"]["weights"] == {"simple": 0.5, "parallel": 0.25, "relevance": 0.25}
    lines = (tmp_path / "report.md").read_text().splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("| mean | 62.5% |"))
    assert lines[first + 1].startswith("| relevance | 100.0% |")


def test_wrong_answers_are_counted_by_kind_with_an_example(tmp_path):
    report().write(tmp_path)
    errors = json.loads((tmp_path / "report.json").read_text())["errors"]
    assert errors == {
        "simple": {"wrong value": {"count": 2, "example": "simple_1"}},
        "parallel": {"no call": {"count": 1, "example": "parallel_0"}},
    }
    text = (tmp_path / "report.md").read_text()
    assert "| category | no call | wrong value |\n|---|---:|---:|\n| simple |  | 2 |\n| parallel | 1 |  |" in text
    # What a model has written is code on one line, whatever it holds.
    assert "- response: ```` ``` </details> [2J ````\n" in text
    assert "- `simple_1`: ` Which file? `\n" in text
    assert "- error: `` bad | `value` ``" in text
    assert "- response: none\n" in text


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
