"""A local run ends when it is told to, with a loop before it too."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

SCRIPT = """
import sys
from pathlib import Path

from kfp import dsl

from pipelines.local import processes, session
from pipelines.monitor import Monitor


@dsl.component(base_image="python:3.11", install_kfp_package=False)
def wait(name: str, folder: str) -> None:
    import pathlib, time

    pathlib.Path(folder, name).touch()
    time.sleep(120)


@dsl.pipeline
def pipeline(folder: str) -> None:
    with dsl.ParallelFor(["a", "b", "c"], parallelism=1) as item:
        wait(name=item, folder=folder)


folder = Path(sys.argv[1])
try:
    with session(folder, Monitor(folder / "artifacts"), processes()):
        pipeline(folder=str(folder))
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_what_a_loop_has_started_and_what_it_would_start(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """kfp.local's thread pool starts all iterations that are left before it lets an exception pass."""
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, str(tmp_path / "script.py"), str(tmp_path)], stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "a").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    assert process.wait(timeout=40) == code  # not the 120 s of a task
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
