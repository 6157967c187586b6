"""Which of several training processes this is, and how one ends."""

from __future__ import annotations

import atexit
import gc
import os


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
