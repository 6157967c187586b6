"""Which of several training processes this is."""

from __future__ import annotations

import os


def is_main_process() -> bool:
    """Whether this is the first of the processes that torchrun or accelerate has started, or the only one.

    The first alone writes files and records metrics. RANK is what both launchers set.
    """
    return int(os.environ.get("RANK", "0")) == 0


def is_launched() -> bool:
    """Whether torchrun or accelerate has started this process, so that it starts no others."""
    return "RANK" in os.environ
