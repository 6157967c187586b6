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

    @classmethod
    def of(cls, error: Exception) -> ProcessError:
        process = int(os.environ["RANK"])
        code = EXIT_USER_ERROR if isinstance(error, UserError) else _EXIT_DEFECT
        return cls(process, f"process {process}: {described(error)}", code)


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
    store, done, ending = _connect(), threading.Event(), threading.Lock()

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            if store.check(["error"]) and (failed := _read(store.get("error"))).process != 0:
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
            sys.stderr.write(f"error: {failed.message}\n")
            sys.stderr.flush()
            store.set("recorded", "yes")
            os._exit(failed.exit_code)  # the main thread may wait for ever

    if is_main_process():
        threading.Thread(target=watch, name="failures", daemon=True).start()
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code"):  # an end that all processes have agreed on
            raise
        own = ProcessError.of(error)
        first = _read(store.compare_set("error", "", json.dumps(asdict(own))))
        if is_main_process():
            if first != own:
                end(first)
            raise
        if first == own and own.exit_code == _EXIT_DEFECT:
            traceback.print_exception(error)
        if not _is_recorded(store) and first == own:
            raise  # nobody took it: it is reported here
        raise SystemExit(first.exit_code) from None
    finally:
        done.set()


def _connect() -> Any:
    """The launcher's key-value store, which outlives its processes."""
    from torch.distributed import PrefixStore, TCPStore

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_PATIENCE)
    return PrefixStore(f"rest-failures/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _is_recorded(store: Any) -> bool:
    """Wait until the first process has recorded the error; False where it does not, or is gone."""
    from torch.distributed import DistError

    with suppress(DistError):
        store.wait(["recorded"], _PATIENCE)
        return True
    return False


def _read(content: bytes) -> ProcessError:
    return ProcessError(**json.loads(content))
