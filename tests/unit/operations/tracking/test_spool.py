from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.errors import UserError
from rest_core.operations.tracking import spool
from rest_core.operations.tracking.spool import Spool

BEGIN = {"stage": "s"}


def ops(folder: Path) -> list[str]:
    return [record["op"] for record, _ in spool.read_records(folder)]


def test_records_come_back_in_order_and_from_any_position(tmp_path: Path) -> None:
    journal = Spool(tmp_path, BEGIN)
    journal.append("metrics", values={"a": 1.0}, step=1)
    journal.append("end", status="FINISHED", error=None, stage="s")
    everything = list(spool.read_records(tmp_path))
    assert [record["op"] for record, _ in everything] == ["begin", "metrics", "end"]
    for index, (_, after) in enumerate(everything):
        assert list(spool.read_records(tmp_path, after)) == everything[index + 1 :]


def test_an_unfinished_line_waits_and_a_torn_one_stays_visible(tmp_path: Path) -> None:
    Spool(tmp_path, BEGIN)
    with (tmp_path / spool.JOURNAL).open("a") as stream:
        stream.write('{"op": "metr')
    assert ops(tmp_path) == ["begin"]
    second = Spool(tmp_path, BEGIN)
    assert ops(tmp_path) == ["begin", "unreadable", "end", "begin"]
    assert second.section == 2


@given(st.binary(max_size=300))
def test_a_journal_of_anything_is_read_without_a_crash(tmp_path_factory: pytest.TempPathFactory, junk: bytes) -> None:
    folder = tmp_path_factory.mktemp("junk")
    (folder / spool.JOURNAL).write_bytes(junk + b'\n{"op": "tags", "section": 1}\n')
    assert ops(folder)[-1] == "tags"


def test_a_section_left_open_is_closed_as_killed_by_the_next(tmp_path: Path) -> None:
    Spool(tmp_path, BEGIN).append("metrics", values={}, step=0)
    Spool(tmp_path, BEGIN)
    killed = next(record for record, _ in spool.read_records(tmp_path) if record["op"] == "end")
    assert (killed["section"], killed["status"], killed["stage"]) == (1, "KILLED", "s")


def test_a_closed_section_is_left_alone(tmp_path: Path) -> None:
    Spool(tmp_path, BEGIN).append("end", status="FINISHED", error=None, stage="s")
    Spool(tmp_path, BEGIN)
    assert ops(tmp_path) == ["begin", "end", "begin"]


@given(st.floats())
def test_numbers_survive_strict_json(value: float) -> None:
    back = float(json.loads(json.dumps(spool.encode_number(value), allow_nan=False)))
    assert back == value or (math.isnan(back) and math.isnan(value))


def test_kept_files_keep_their_names_and_do_not_collide(tmp_path: Path) -> None:
    journal = Spool(tmp_path / "spool", BEGIN)
    kept = [journal.keep_bytes(content, "a.json") for content in (b"1", b"2")]
    assert [(tmp_path / "spool" / "files" / name).read_bytes() for name in kept] == [b"1", b"2"]
    assert {Path(name).name for name in kept} == {"a.json"}


def test_a_folder_that_cannot_be_written_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="tracking records cannot be written"):
        Spool(tmp_path / "file", BEGIN)


def test_only_one_process_sends(tmp_path: Path) -> None:
    with (
        spool.sending(tmp_path, wait=False),
        pytest.raises(UserError, match="running stage"),
        spool.sending(tmp_path, wait=False),
    ):
        pass
