from __future__ import annotations

import math
from pathlib import Path

import pytest

from rest_core.training.history import History, unreadable


def test_what_was_logged_after_a_checkpoint_is_taken_back(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.restore(b"", {})
    history.add({"loss": 1.0, "odd": math.inf}, 1)
    history.add_table([{"response": "é\n"}], 1)
    content, tables = history.content, dict(history.tables)
    history.add({"loss": 2.0}, 2)
    history.add_table([{"response": "later"}], 2)
    assert (tmp_path / "history.jsonl").read_bytes() == history.content != content

    again = History(tmp_path)
    again.restore(content, tables)
    assert again.entries == [{"step": 1, "loss": 1.0, "odd": math.inf}]
    assert (tmp_path / "history.jsonl").read_bytes() == content == again.content
    assert [path.name for path in (tmp_path / "completions").iterdir()] == ["step-000001.json"]
    assert again.read_table("step-000001.json") == [{"response": "é\n"}]
    again.add({"loss": 2.0}, 2)
    assert again.content == history.content


def test_a_line_that_a_killed_process_has_half_written_is_taken_back(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.restore(b"", {})
    history.add({"loss": 1.0}, 1)
    with (tmp_path / "history.jsonl").open("a") as stream:
        stream.write('{"step": 2, "lo')
    again = History(tmp_path)
    again.restore(history.content, {})
    again.add({"loss": 2.0}, 2)
    assert (tmp_path / "history.jsonl").read_text().count("\n") == 2


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_table_that_is_not_what_was_written_is_told(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    history = History(tmp_path)
    history.restore(b"", {})
    history.add_table([{"response": "x"}], 1)
    path = history.table_path("step-000001.json")
    path.unlink() if damage == "gone" else path.write_text("[]")
    again = History(tmp_path)
    again.restore(b"", history.tables)
    assert again.tables == {} and not path.exists()
    assert f"{path} is missing or not what was written" in caplog.text


def test_a_history_with_numbers_that_are_none_is_readable() -> None:
    assert unreadable(b'{"step": 1, "loss": NaN, "other": -Infinity}\n', 1) is None
    assert unreadable(b"", 0) is None
