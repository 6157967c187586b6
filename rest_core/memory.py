"""Memory of this process: what is in use, how it is kept, and what to say when there is none left."""

from __future__ import annotations

import ctypes
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from rest_core.errors import UserError

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

# How plain `RuntimeError`s of torch say it: its allocators on CPUs, and libraries on GPUs.
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")


def peak_memory_gib() -> float:
    """Peak memory so far in GiB: of the GPU where there is one, else the resident set of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    scale = 1 if sys.platform == "darwin" else 1024  # ru_maxrss counts bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30


def keep_freed_memory() -> bool:
    """Have the C library keep large blocks that are freed, for the next tensor of that size; whether it does.

    By default glibc maps every large block anew and gives it back when it is freed, so that each tensor of a training
    step costs a page fault for every 4 KiB: on CPUs that is a large part of the step. Not for training on rows of
    very different lengths: what is kept is cut up then, and fits ever fewer of the larger tensors. Without effect on
    other C libraries, and on GPU memory, which torch caches itself.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


@contextmanager
def out_of_memory_names(setting: str, value: int, tokens: int, *, otherwise: str = "") -> Iterator[None]:
    """Running out of memory inside becomes a `UserError` that says which setting to lower, and to what.

    Args:
        setting: the setting that bounds the work inside, a number of tokens.
        value: its value.
        tokens: what was being computed; the advice is half of the smaller of the two.
        otherwise: what else would help.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = " ".join(str(error).split())
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if not known and not any(message in text for message in _OUT_OF_MEMORY):
            raise
        lower = max(1, min(value, tokens) // 2)
        raise UserError(
            f"out of memory with {tokens} tokens at once: lower {setting} from {value} to {lower}"
            f"{otherwise and f' (or {otherwise})'}; {text[:200]}"
        ) from error
