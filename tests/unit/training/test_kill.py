"""Real processes, really killed (SIGKILL) or told to stop (SIGTERM), against one that was left alone.

`benchmarks/kill_resume.py` does the same at many random moments.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    path = Path(__file__).resolve().parents[3] / "benchmarks" / "kill_resume.py"
    spec = importlib.util.spec_from_file_location("kill_resume", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_resume"] = module  # the processes that it starts find `train` by this name
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(path.parent))
    del sys.modules["kill_resume"]


@pytest.fixture(scope="module")
def runner(bench: ModuleType) -> Any:
    return bench.Runner()


@pytest.fixture(scope="module", params=["one update a rollout", "two updates a rollout"])
def straight(
    request: pytest.FixtureRequest, bench: ModuleType, runner: Any, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, dict[str, str]]:
    """(mode, digests) of a training that was left alone."""
    out = tmp_path_factory.mktemp("straight")
    runner.finish(out, request.param)
    digests = bench.digests(out)
    assert {"weights", "history", "completions/step-000001.json", "completions/step-000006.json"} <= digests.keys()
    return request.param, digests


def test_a_training_that_is_killed_in_every_phase_ends_as_if_it_had_not_been(
    straight: tuple[str, dict[str, str]], bench: ModuleType, runner: Any, tmp_path: Path
) -> None:
    mode, expected = straight
    landed = [runner.kill(tmp_path, mode, phase=p) for p in ("rollout", "update", "checkpoint", "evaluate")]
    # The marker is written at a phase's begin; the kill comes within a fraction of a millisecond.
    assert len({killed.phase for killed in landed}) >= 3
    runner.finish(tmp_path, mode)
    assert bench.differing(tmp_path, expected) == []


def test_a_training_that_is_told_to_stop_leaves_a_checkpoint_and_goes_on(
    straight: tuple[str, dict[str, str]], bench: ModuleType, runner: Any, tmp_path: Path
) -> None:
    mode, expected = straight
    for phase, number, code in (
        ("rollout", signal.SIGTERM, 75),
        ("update", signal.SIGTERM, 75),
        ("evaluate", signal.SIGINT, 130),
    ):
        process = runner.context.Process(target=stoppable, args=(tmp_path, mode))
        known = len(bench.moments(tmp_path))
        process.start()
        while not any(name == phase for _, name, _ in bench.moments(tmp_path)[known:]):
            time.sleep(0.0005)
        os.kill(process.pid, number)
        process.join()
        assert process.exitcode == code
        _, name, step = bench.moments(tmp_path)[-1]
        told = json.loads((tmp_path / "stopped.json").read_text())
        match = re.match(rf"{number.name}: left after step (\d) of 6; start again", told)
        assert match is not None and step - 1 <= int(match[1]) <= step
        assert int(match[1]) == step - 1 or name != "rollout"  # which is thrown away
        newest = max((tmp_path / "training").glob("step-*"))
        assert newest.name in told
        assert json.loads((newest / "state.json").read_text())["state"]["step"] == int(newest.name[5:])
    runner.finish(tmp_path, mode)
    assert bench.differing(tmp_path, expected) == []


def stoppable(out: Path, mode: str) -> None:
    """As the command line does it."""
    from kill_resume import train

    from rest_core.errors import Preempted

    try:
        train(out, mode)
    except Preempted as stop:
        (out / "stopped.json").write_text(json.dumps(str(stop)))
        sys.exit(stop.exit_code)
