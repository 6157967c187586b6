"""Which of several training processes this is, and how one ends."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from rest_core.disk import disk_problem
from rest_core.errors import EXIT_USER_ERROR, Preempted, UserError, with_notes


def rest_command() -> str:
    """The command `rest` as it is typed in the working directory: of the environment that this process runs in."""
    script = Path(sys.executable).parent / "rest"
    found = shutil.which("rest")
    if found is not None and Path(found).resolve() == script.resolve():
        return "rest"
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)


def is_main_process() -> bool:
    """Whether this is the first of the processes that torchrun or accelerate has started, or the only one.

    The first alone writes files and records metrics. RANK is what both launchers set.
    """
    return int(os.environ.get("RANK", "0")) == 0


def is_launched() -> bool:
    """Whether torchrun or accelerate has started this process, so that it starts no others."""
    return "RANK" in os.environ


def skip_last_collections() -> None:
    """Have this process end without one more search for garbage.

    With torch or MLflow imported the interpreter's last collections take half a second or more, for memory that the
    system takes back anyway.
    """
    atexit.register(gc.freeze)


@contextmanager
def errors_reported() -> Iterator[None]:
    """End the process where the block fails by something that the user can mend, with one line on standard error.

    Exit codes: 2 for such an error, `Preempted.exit_code` where the process was asked to stop. A defect of ours passes,
    and keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        fail(with_notes(error))
    except Preempted as stop:
        sys.stderr.write(f"{with_notes(stop)}\n")
        sys.exit(stop.exit_code)
    except OSError as error:
        if (problem := disk_problem(error, "this machine")) is None or isinstance(error, PermissionError):
            raise
        fail(problem)


def fail(message: str) -> NoReturn:
    """End the process with an error that the user can mend."""
    mark = "\x1b[1;31merror:\x1b[0m" if sys.stderr.isatty() else "error:"
    sys.stderr.write(f"{mark} {message}\n")
    sys.exit(EXIT_USER_ERROR)
