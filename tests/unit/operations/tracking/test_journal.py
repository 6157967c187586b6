from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.errors import UserError
from rest_core.operations.tracking import journal
from rest_core.operations.tracking.journal import Journal

BEGIN: dict[str, Any] = {
    "uri": "http://127.0.0.1:9",
    "experiment": "test",
    "stage": "s",
    "join": None,
    "levels": [{"name": "p", "tags": {"rest.pipeline_run": "p"}, "unique": ["rest.pipeline_run"]}],
}
METRICS: dict[str, Any] = {"to": "run", "values": {"a": 1.0}, "step": 1}


def begun(spool: Path) -> Journal:
    records = Journal(spool)
    records.append("begin", **BEGIN)
    return records


def ops(path: Path) -> list[str]:
    return [record["op"] for record, _ in journal.read_records(path)]


def test_records_come_back_in_order_and_from_any_position(tmp_path: Path) -> None:
    records = begun(tmp_path)
    records.append("metrics", **METRICS)
    records.append("end", status="FINISHED", error=None)
    everything = list(journal.read_records(records.path))
    assert [record["op"] for record, _ in everything] == ["begin", "metrics", "end"]
    for index, (_, after) in enumerate(everything):
        assert list(journal.read_records(records.path, after)) == everything[index + 1 :]


def test_each_attempt_has_a_journal_of_its_own(tmp_path: Path) -> None:
    attempts = [begun(tmp_path) for _ in range(11)]
    assert journal.find(tmp_path) == [one.path for one in attempts]
    assert [one.attempt for one in attempts] == list(range(1, 12))


def test_an_unfinished_line_waits_and_a_torn_one_stays_visible(tmp_path: Path) -> None:
    records = begun(tmp_path)
    with (records.path / journal.JOURNAL).open("a") as stream:
        stream.write('{"op": "metr')
    assert ops(records.path) == ["begin"]
    journal.close_killed(records.path)
    assert ops(records.path) == ["begin", "unreadable", "end"]


@given(st.binary(max_size=300))
def test_a_journal_of_anything_is_read_without_a_crash(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    path = tmp_path_factory.mktemp("junk")
    (path / journal.JOURNAL).write_bytes(junk + b'\n{"time": 1, "op": "tags", "to": "run", "values": {}}\n')
    assert ops(path)[-1] == "tags"


def test_every_record_survives_a_process_that_is_killed(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from rest_core.operations.tracking.journal import Journal
records = Journal(Path({str(tmp_path)!r}))
records.append("begin", **{BEGIN!r})
for step in range(1000):
    records.append("metrics", to="run", step=step, values={{"loss": 1.0}})
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (path,) = journal.find(tmp_path)
    with journal.hold(path):  # the lock went with the process
        journal.close_killed(path)
    last, _ = list(journal.read_records(path))[-1]
    assert ops(path) == ["begin", *["metrics"] * 1000, "end"]
    assert last["status"] == "KILLED"


def test_a_journal_that_has_its_end_is_left_alone(tmp_path: Path) -> None:
    records = begun(tmp_path)
    records.append("end", status="FINISHED", error=None)
    journal.close_killed(records.path)
    assert ops(records.path) == ["begin", "end"]


def test_kept_files_keep_their_names_and_do_not_collide(tmp_path: Path) -> None:
    records = begun(tmp_path)
    (tmp_path / "source").write_bytes(b"2")
    kept = [records.keep(source, "a.json") for source in (b"1", tmp_path / "source")]
    assert [(records.path / "files" / name).read_bytes() for name in kept] == [b"1", b"2"]
    assert {Path(name).name for name in kept} == {"a.json"}


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="tracking records cannot be written"):
        Journal(tmp_path / "file")


def test_only_one_process_sends(tmp_path: Path) -> None:
    records = begun(tmp_path)
    with pytest.raises(UserError, match="running stage"):
        journal.hold(records.path)
    records.close()
    with journal.hold(records.path):
        pass
    with journal.hold(records.path):
        pass
