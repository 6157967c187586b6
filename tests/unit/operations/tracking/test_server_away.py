"""A real MLflow server that is not there, comes, goes and comes back while a stage runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import runs, store, ui


@contextmanager
def server(database: str, port: int) -> Iterator[None]:
    """`rest ui`'s server, until the end of the block; killed without a chance to say goodbye."""
    process = subprocess.Popen(
        ui.server_command(database, "127.0.0.1", port),
        env=ui.server_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 240
        while store.unreachable(f"http://127.0.0.1:{port}", timeout=1) is not None:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_nothing_is_lost_or_doubled_and_the_stage_never_waits(
    tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    assert tracking.uri is not None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    remote = TrackingConfig(uri=f"http://127.0.0.1:{port}", experiment="test")
    slowest = 0.0

    def record(run: runs.Recorder, steps: range) -> None:
        nonlocal slowest
        for step in steps:
            start = time.monotonic()
            run.metrics({"loss": 1 / step, "reward": float(step)}, step=step)
            slowest = max(slowest, time.monotonic() - start)

    monkeypatch.setattr(runs, "GRACE_SECONDS", 1.0)
    with runs.stage_run(remote, stage="train", pipeline_run="p", spool=tmp_path / "a", parameters={"a": 1}) as run:
        record(run, range(1, 11))  # nobody there
        while not any("does not take records" in message for message in caplog.messages):
            time.sleep(0.1)
        with server(tracking.uri, port):
            assert run.wait(60)
            assert run.run_id is not None
        record(run, range(11, 21))  # gone
        run.table([{"a": 1}], "rows")
        while sum("does not take records" in message for message in caplog.messages) < 2:
            time.sleep(0.1)
        with server(tracking.uri, port):
            record(run, range(21, 31))
            assert run.wait(60)
            run_id = run.run_id
            assert run_id is not None
            client = store.connect(remote)
            assert client.get_run(run_id).info.status == "RUNNING"
            history = client.get_metric_history(run_id, "loss")
            assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
                (step, 1 / step) for step in range(1, 31)
            ]
            stamps = [m.timestamp for m in sorted(history, key=lambda m: m.step)]
            assert stamps == sorted(stamps)
            assert stamps[10] - stamps[0] > 1000  # the times are those of the stage, not of the sending
            assert [one.path for one in client.list_artifacts(run_id, "tables")] == ["tables/rows.json"]
    assert slowest < 5  # of a request to a server that is away, one waits for longer
    away = [message for message in caplog.messages if "does not take records" in message]
    back = [message for message in caplog.messages if "MLflow answers again" in message]
    assert (len(away), len(back)) == (3, 2)  # one message a disappearance, one a return; at the end it is gone
