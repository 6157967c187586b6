"""Memory in use, for the figures that are logged."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_gib() -> float:
    """Peak memory so far in GiB: of the GPU where there is one, else the resident set of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30
