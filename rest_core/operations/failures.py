"""One process's failure ends them all, with its message.

Processes that train together wait for each other: where one fails, the others wait on, and the launcher ends them
without a word. So the one that fails says why in the launcher's store, and stays until the first process, which watches
the store beside its work, has recorded it and ended. The launcher then ends the rest.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from rest_core.errors import EXIT_USER_ERROR, UserError
from rest_core.processes import is_main_process

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 60.0  # that a failed process waits for the first one to record its failure
_OTHERS_PATIENCE_SECONDS = 10.0  # that a process which failed because of it waits to be ended
_EXIT_DEFECT = 1


@dataclass(frozen=True)
class Failure:
    """What ended a process; the first of several that fail is what counts."""

    process: int
    message: str  # one line
    exit_code: int
    details: str  # traceback of a defect; empty where the user can mend it

    @classmethod
    def of(cls, error: Exception) -> Failure:
        process = int(os.environ["RANK"])
        text = " ".join(str(error).split())
        if isinstance(error, UserError):
            return cls(process, f"process {process}: {text}", EXIT_USER_ERROR, "")
        message = f"process {process}: {type(error).__name__}: {text}"
        return cls(process, message, _EXIT_DEFECT, "".join(traceback.format_exception(error)))

    def tell(self) -> None:
        """On standard error, as the command line tells its own errors."""
        sys.stderr.write(f"{self.details}error: {self.message}\n")
        sys.stderr.flush()


@contextmanager
def ending_together(record: Callable[[Failure], None] | None = None) -> Iterator[None]:
    """Around the work of one of several processes that torchrun or `accelerate launch` has started.

    A failure of the first process itself goes on as it is, as everything does in a process that is alone.

    Args:
        record: given by the first process: keeps another one's failure. It runs in a thread of its own, because the
            main one may wait for the process that failed; then the process ends.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield
        return
    board = _Board()
    done, ending = threading.Event(), threading.Lock()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            failure = board.first()
            if failure is not None and failure.process != 0 and ending.acquire(blocking=False):
                _end(board, failure, record)

    if is_main_process():
        threading.Thread(target=watch, name="failures", daemon=True).start()
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code"):  # an end that all processes have agreed on, no failure
            raise
        first = board.report(Failure.of(error))
        if not is_main_process():
            _wait_for_the_end(board, first, error)
        if first.process == 0:
            raise
        # It failed because another one had: that is what is told, by this thread or the one that watches.
        if ending.acquire(blocking=False):
            _end(board, first, record)
        threading.Event().wait()
    finally:
        done.set()


def _end(board: _Board, failure: Failure, record: Callable[[Failure], None] | None) -> None:
    """The first process's end, where another one has failed."""
    try:
        if record is not None:
            record(failure)
    except Exception:  # whatever is wrong with the record, the message is told and the processes end
        log.exception("the failure of process %d could not be recorded", failure.process)
    finally:
        failure.tell()
        board.recorded()
        os._exit(failure.exit_code)  # the main thread may wait for ever


def _wait_for_the_end(board: _Board, first: Failure, error: Exception) -> None:
    """In a process that is not the first: leave telling to that one, which the launcher follows in ending this one."""
    own = first.process == int(os.environ["RANK"])
    deadline = time.monotonic() + (_PATIENCE_SECONDS if own else _OTHERS_PATIENCE_SECONDS)
    while time.monotonic() < deadline:
        if board.is_recorded():
            break
        time.sleep(_POLL_SECONDS)
    else:
        if own:
            raise error  # nobody took it: tell it here
    raise SystemExit(first.exit_code)


class _Board:
    """The launcher's key-value store, which outlives its processes."""

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore

        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=60)
        )
        self._store: Any = PrefixStore(f"rest-failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def report(self, failure: Failure) -> Failure:
        """Put up a failure; returns the one that was first."""
        return _read(self._store.compare_set("failure", "", json.dumps(asdict(failure))))

    def first(self) -> Failure | None:
        return _read(self._store.get("failure")) if self._store.check(["failure"]) else None

    def recorded(self) -> None:
        self._store.set("recorded", "yes")

    def is_recorded(self) -> bool:
        return bool(self._store.check(["recorded"]))


def _read(content: bytes) -> Failure:
    return Failure(**json.loads(content))
