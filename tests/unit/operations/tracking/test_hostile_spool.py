"""A spool that was copied from elsewhere, edited or damaged: it leads nowhere but to the run that it is of."""

from __future__ import annotations

import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities import Run

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import journal, runs
from rest_core.operations.tracking.delivery import Delivery, deliver
from rest_core.operations.tracking.journal import JOURNAL, Journal, State

METRICS = {"time": 5, "op": "metrics", "to": "run", "step": 1, "values": {"loss": 1.0}}
ARTIFACT = {"time": 5, "op": "artifact", "to": "run", "folder": "", "table": False}


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    (folder / "below").mkdir(parents=True)
    (folder / "precious.txt").write_text("secret")
    (folder / "below" / "more.txt").write_text("more")
    return folder


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def spool(folder: Path, tracking: TrackingConfig, *lines: dict[str, Any] | bytes) -> Journal:
    """A journal of the stage "train" with these records or lines, ended."""
    records = Journal(folder)
    levels = runs._levels("p", "train", None, records.attempt)
    records.append("begin", uri=tracking.uri, experiment="test", stage="train", join=None, levels=levels)
    with (records.path / JOURNAL).open("ab") as stream:
        for line in lines:
            stream.write((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n")
    records.append("end", status="FINISHED", error=None)
    records.close()
    return records


def sent(tracking: TrackingConfig, folder: Path) -> Delivery:
    return deliver(folder, str(tracking.uri))


def train(client: MlflowClient) -> Run:
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id], "attributes.run_name = 'train'")
    return run


KEPT = "0123456789ab"


def _links_out(files: Path, victim: Path) -> str:
    (files / KEPT).mkdir()
    (files / KEPT / "a.txt").symlink_to(victim / "precious.txt")
    return f"{KEPT}/a.txt"


def _links_folder_out(files: Path, victim: Path) -> str:
    (files / KEPT).symlink_to(victim)
    return f"{KEPT}/precious.txt"


def _is_folder(files: Path, victim: Path) -> str:
    shutil.copytree(victim, files / KEPT / "a.txt")
    return f"{KEPT}/a.txt"


def _is_pipe(files: Path, victim: Path) -> str:
    (files / KEPT).mkdir()
    os.mkfifo(files / KEPT / "a.txt")
    return f"{KEPT}/a.txt"


@pytest.mark.parametrize(
    "lead",
    [
        lambda files, victim: str(victim / "precious.txt"),
        lambda files, victim: "../../../victim/precious.txt",
        lambda files, victim: f"{KEPT}/../../../../victim/precious.txt",
        lambda files, victim: "precious.txt",
        lambda files, victim: "..",
        lambda files, victim: "",
        lambda files, victim: f"{KEPT}/..",
        lambda files, victim: "a" * 5000 + "/b",
        lambda files, victim: f"{KEPT}/never-there.txt",
        _links_out,
        _links_folder_out,
        _is_folder,
        _is_pipe,
    ],
)
def test_a_record_of_a_file_elsewhere_reads_and_deletes_nothing_and_keeps_nothing_back(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, victim: Path, lead: Any
) -> None:
    before = contents(victim)
    records = spool(tmp_path / "spool", tracking)
    file = lead(records.path / "files", victim)
    lines = (records.path / JOURNAL).read_bytes().splitlines(keepends=True)
    added = [json.dumps(ARTIFACT | {"file": file}).encode() + b"\n", json.dumps(METRICS).encode() + b"\n"]
    (records.path / JOURNAL).write_bytes(b"".join([lines[0], *added, lines[1]]))
    (records.path / "files" / "other").mkdir()
    done = sent(tracking, tmp_path / "spool")
    assert (done.left, done.refused, done.problem) == (0, 1, None)
    assert contents(victim) == before and (records.path / "files" / "other").is_dir()
    run = train(client)
    assert client.list_artifacts(run.info.run_id) == []
    assert (run.data.metrics, run.info.status) == ({"loss": 1.0}, "FINISHED")


def test_links_in_place_of_a_journals_own_files_are_not_followed(
    tracking: TrackingConfig, tmp_path: Path, victim: Path
) -> None:
    before = contents(victim)
    for name in (JOURNAL, "lock", "state.json", "state.json.tmp", "files"):
        records = spool(tmp_path / name, tracking, ARTIFACT | {"file": "below/more.txt"})
        target = victim if name == "files" else victim / "precious.txt"
        path = records.path / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target)
        journal.find(tmp_path / name) and sent(tracking, tmp_path / name)
        assert contents(victim) == before, name


@pytest.mark.parametrize(
    "line",
    [
        b"{torn",
        b"",
        b"null",
        b"[]",
        b"7",
        b'"begin"',
        b"\xff\xfe",
        b"[" * 5000,
        b'{"a":' * 5000,
        json.dumps({"time": 1, "op": "format-disk"}).encode(),
        json.dumps({"op": "tags", "to": "run", "values": {}}).encode(),
        json.dumps(METRICS | {"values": {"loss": "high"}}).encode(),
        json.dumps(METRICS | {"values": [1]}).encode(),
        json.dumps(METRICS | {"values": {"loss": None}}).encode(),
        json.dumps(METRICS | {"step": 2**70}).encode(),
        json.dumps(METRICS | {"step": 1.5}).encode(),
        json.dumps(METRICS | {"time": -1}).encode(),
        json.dumps(METRICS | {"time": 10**40}).encode(),
        json.dumps(METRICS | {"to": "somebody"}).encode(),
        json.dumps(METRICS).encode().replace(b"1.0", b"NaN"),
        json.dumps(METRICS).encode().replace(b"1.0", b"1e999"),
        json.dumps(METRICS).encode().replace(b"1.0", b"9" * 5000),
        json.dumps(METRICS).encode().replace(b"loss", b"\\ud800"),
        json.dumps(ARTIFACT | {"file": "0123456789ab/a", "folder": "../up"}).encode(),
        json.dumps(ARTIFACT | {"file": "0123456789ab/a", "folder": "/etc"}).encode(),
        json.dumps(ARTIFACT | {"file": ["a"]}).encode(),
        json.dumps({"time": 1, "op": "end", "status": "WELL", "error": None}).encode(),
        json.dumps({"time": 1, "op": "begin", "uri": "http://evil"}).encode(),
    ],
)
def test_a_line_that_is_no_record_is_counted_told_and_passed_over(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    spool(tmp_path / "spool", tracking, line, METRICS)
    done = sent(tracking, tmp_path / "spool")
    assert (done.left, done.refused, done.problem) == (0, 1, None)
    assert any("refused" in message and "no record" in message for message in caplog.messages)
    run = train(client)
    assert (run.data.metrics, run.info.status) == ({"loss": 1.0}, "FINISHED")


@pytest.mark.parametrize(
    "state",
    [
        "",
        "{",
        "[]",
        "null",
        '{"sent": 7, "ids": null, "refused": 0}',
        '{"sent": {"values": -5, "files": 0}, "ids": null, "refused": 0}',
        '{"sent": {"values": 99999999, "files": 99999999}, "ids": null, "refused": 0}',
        '{"sent": {"values": 7, "files": 7}, "ids": null, "refused": 0}',
        '{"sent": {"values": 0}, "ids": "somebody", "refused": "many"}',
        '{"sent": {"values": 0, "files": 0}, "ids": {"run": 1}, "refused": 0}',
        "[" * 5000,
    ],
)
def test_a_damaged_state_means_that_nothing_is_sent_yet(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, state: str
) -> None:
    records = spool(tmp_path / "spool", tracking, METRICS)
    (records.path / "state.json").write_text(state)
    assert sent(tracking, tmp_path / "spool") == Delivery(sent=3, left=0, refused=0, problem=None)
    assert train(client).data.metrics == {"loss": 1.0}


def test_a_lost_file_is_refused_once_and_a_sent_one_is_not(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    records = spool(tmp_path / "spool", tracking)
    names = [records.keep(b"x", name) for name in ("sent.txt", "lost.txt")]
    lines = (records.path / JOURNAL).read_bytes().splitlines(keepends=True)
    added = [json.dumps(ARTIFACT | {"file": name}).encode() + b"\n" for name in names]
    (records.path / JOURNAL).write_bytes(b"".join([lines[0], *added, lines[1]]))
    (records.path / "files" / names[1]).unlink()
    for _ in range(2):  # once more, as if the process had died before it noted what was sent
        done = sent(tracking, tmp_path / "spool")
        assert (done.left, done.refused) == (0, 1)
        State().write(records.path)
    assert [one.path for one in client.list_artifacts(train(client).info.run_id)] == ["sent.txt"]


def test_nothing_goes_to_an_address_that_a_journal_names(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.1", 0))
        elsewhere.listen()
        elsewhere.settimeout(0.2)
        address = f"http://127.0.0.1:{elsewhere.getsockname()[1]}"
        spool(tmp_path / "spool", TrackingConfig(uri=address), METRICS)
        done = sent(tracking, tmp_path / "spool")
        assert (done.sent, done.left) == (0, 3)
        assert done.problem is not None and "\n" not in done.problem
        assert address in done.problem and str(tracking.uri) in done.problem and "--moved" in done.problem
        done = deliver(tmp_path / "spool", str(tracking.uri), moved=True)
        assert (done.sent, done.left) == (3, 0)
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert train(client).data.metrics == {"loss": 1.0}


def test_a_journal_that_cannot_be_sent_keeps_no_other_back(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    for name in ("a", "c"):
        damaged = spool(tmp_path / "spools" / name, tracking, METRICS).path / JOURNAL
        damaged.write_bytes(damaged.read_bytes()[40:])
    held = spool(tmp_path / "spools" / "d", tracking)
    spool(tmp_path / "spools" / "e", tracking, METRICS)
    with journal.hold(held.path):
        done = sent(tracking, tmp_path / "spools")
    assert (done.sent, done.left) == (3, 8)
    assert done.problem is not None and "first line is damaged" in done.problem and "running stage" in done.problem
    assert train(client).data.metrics == {"loss": 1.0}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=6)), min_size=1, max_size=4), st.booleans())
def test_random_edits_of_a_spool_end_without_a_traceback(
    tracking: TrackingConfig, tmp_path: Path, victim: Path, edits: list[tuple[float, bytes]], of_state: bool
) -> None:
    before = contents(victim)
    folder = tmp_path / "edited"
    shutil.rmtree(folder, ignore_errors=True)
    records = spool(folder, tracking, METRICS, ARTIFACT | {"file": f"{KEPT}/a.txt"})
    State().write(records.path)
    path = records.path / ("state.json" if of_state else JOURNAL)
    content = bytearray(path.read_bytes())
    for where, new in edits:
        at = int(where * len(content))
        content[at : at + len(new)] = new
    path.write_bytes(bytes(content))
    done = sent(tracking, folder)
    assert (done.left == 0) == (done.problem is None)
    assert contents(victim) == before
