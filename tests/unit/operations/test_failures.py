"""How a process's failure is told to the others; the launch itself is tried in tests/integration."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore

from rest_core.errors import Preempted, UserError
from rest_core.operations.failures import ProcessError, ending_together

ROOT = Path(__file__).parents[3]
PROCESS = """
import sys, threading
from rest_core.errors import UserError
from rest_core.operations.failures import ending_together

class Broken(Exception):
    pass

kind = sys.argv[1]
with ending_together((lambda failure: print("recorded", failure.message)) if kind == "waits" else None):
    if kind == "waits":
        threading.Event().wait()  # as in a collective that the other one never joins
    raise {"user": UserError, "defect": Broken}[kind]("too bad")
"""


@pytest.fixture
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def start(store: TCPStore, rank: int, kind: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROCESS, kind]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("kind", "told", "code"), [("user", "too bad", 2), ("defect", "Broken: too bad", 1)])
def test_the_first_process_tells_what_has_ended_another(store: TCPStore, kind: str, told: str, code: int) -> None:
    first, other = start(store, 0, "waits"), start(store, 1, kind)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == code
    assert f"error: process 1: {told}\n" in errors
    assert "Traceback" not in errors
    _, details = other.communicate(timeout=120)
    assert other.returncode == code
    assert ("Traceback" in details) == (kind == "defect") and "error:" not in details


def test_the_first_processs_own_failure_goes_on_as_it_is(store: TCPStore) -> None:
    first = start(store, 0, "user")
    _, errors = first.communicate(timeout=120)
    assert errors.rstrip().endswith("UserError: too bad")


def test_a_process_alone_has_nobody_to_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="too bad"), ending_together():
        raise UserError("too bad")


def test_a_stop_that_all_agreed_on_is_no_failure(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "RANK": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Preempted), ending_together():
        raise Preempted("told to stop")
    assert not store.check(["rest-failures/0/error"])


def test_a_message_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    failure = ProcessError.of(UserError("lower\n  the batch"))
    assert (failure.message, failure.exit_code) == ("process 3: lower the batch", 2)
