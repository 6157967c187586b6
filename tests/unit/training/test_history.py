from __future__ import annotations

import math
from pathlib import Path

import pytest

from rest_core.training.history import History


def test_what_was_logged_after_a_checkpoint_is_taken_back(tmp_path: Path) -> None:
    history = History(tmp_path)
    history.restore(b"", {})
    history.add({"loss": 1.0, "odd": math.inf}, 1)
    history.add_table([{"response": "é\n"}], 1)
    content, tables = history.content, dict(history.tables)
    history.add({"loss": 2.0}, 2)
    history.add_table([{"response": "later"}], 2)
    assert history.content.startswith(content) and history.content != content

    again = History(tmp_path)
    again.restore(content, tables)
    assert again.entries == [{"step": 1, "loss": 1.0, "odd": math.inf}]
    assert content == again.content
    assert [path.name for path in (tmp_path / "completions").iterdir()] == ["step-000001.json"]
    assert again.read_table("step-000001.json") == [{"response": "é\n"}]
    again.add({"loss": 2.0}, 2)
    assert again.content == history.content


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
