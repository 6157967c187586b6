"""The error of any process ends them all, and the first one reports it.

Processes that train together wait for each other: where one fails, the others hang in a collective, and the launcher
ends them without a message; torch.distributed.elastic's error files are read by the launcher alone, when the first
process can record nothing any more. So a process that fails puts its error into the launcher's store and waits. A
thread of the first process watches the store, records the error and ends its process; the launcher ends the rest.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from rest_core.errors import EXIT_USER_ERROR, UserError, described
from rest_core.processes import is_main_process

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_PATIENCE = timedelta(seconds=60)  # that a failed process waits for the first one to record its error
_EXIT_DEFECT = 1


@dataclass(frozen=True)
class ProcessError:
    """What ended a process; of several processes that fail, the first one's counts."""

    process: int
    message: str  # one line
    exit_code: int
    details: str  # traceback of a defect; empty where the user can mend it

    @classmethod
    def of(cls, error: Exception) -> ProcessError:
        process = int(os.environ["RANK"])
        message = f"process {process}: {described(error)}"
        if isinstance(error, UserError):
            return cls(process, message, EXIT_USER_ERROR, "")
        return cls(process, message, _EXIT_DEFECT, "".join(traceback.format_exception(error)))


@contextmanager
def ending_together(record: Callable[[ProcessError], None] | None = None) -> Iterator[None]:
    """Around the work of one of several processes that torchrun or `accelerate launch` has started.

    An error of the first process itself is raised as it is, and so is every error in a process that is alone.

    Args:
        record: given by the first process: keeps another one's error. It runs in a thread of its own, because the main
            one may wait for the process that failed; then the process ends.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        yield
        return
    board = _Board()
    done, ending = threading.Event(), threading.Lock()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            if (failed := board.first()) is not None and failed.process != 0:
                end(failed)

    def end(failed: ProcessError) -> None:
        """Report another process's error and end this one: from this thread or the one that watches."""
        if not ending.acquire(blocking=False):
            threading.Event().wait()
        try:
            if record is not None:
                record(failed)
        except Exception:  # whatever is wrong with the record, the error is reported and the processes end
            log.exception("the error of process %d could not be recorded", failed.process)
        finally:
            sys.stderr.write(f"{failed.details}error: {failed.message}\n")
            sys.stderr.flush()
            board.set_recorded()
            os._exit(failed.exit_code)  # the main thread may wait for ever

    if is_main_process():
        threading.Thread(target=watch, name="failures", daemon=True).start()
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code"):  # an end that all processes have agreed on
            raise
        first = board.report(ProcessError.of(error))
        if is_main_process():
            if first.process != 0:
                end(first)
        elif board.wait_until_recorded() or first.process != int(os.environ["RANK"]):
            raise SystemExit(first.exit_code) from None
        raise  # of the first process itself, or one that nobody took
    finally:
        done.set()


class _Board:
    """The launcher's key-value store, which outlives its processes."""

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore

        store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE)
        self._store: Any = PrefixStore(f"rest-failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)

    def report(self, failed: ProcessError) -> ProcessError:
        """Put up an error; returns the one that was first."""
        return _read(self._store.compare_set("failure", "", json.dumps(asdict(failed))))

    def first(self) -> ProcessError | None:
        return _read(self._store.get("failure")) if self._store.check(["failure"]) else None

    def set_recorded(self) -> None:
        self._store.set("recorded", "yes")

    def wait_until_recorded(self) -> bool:
        from torch.distributed import DistError

        with suppress(DistError):  # a timeout, or a store that is gone with the launcher
            self._store.wait(["recorded"], _PATIENCE)
            return True
        return False


def _read(content: bytes) -> ProcessError:
    return ProcessError(**json.loads(content))
