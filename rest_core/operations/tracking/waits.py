"""How long a request to MLflow may be waited for at most, in this thread; `bounded_http` keeps to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_seconds: ContextVar[float] = ContextVar("seconds", default=float("inf"))
_told: ContextVar[bool] = ContextVar("told", default=True)


@contextmanager
def at_most(seconds: float, *, told: bool | None = None) -> Iterator[None]:
    """Within the block a request waits no longer than `seconds` in all.

    Args:
        seconds: the bound; one that is in force already stays where it is lower.
        told: whether a warning says what is waited for, after some seconds; None = as it was.
    """
    bound = _seconds.set(min(seconds, _seconds.get()))
    quiet = _told.set(_told.get() if told is None else told)
    try:
        yield
    finally:
        _seconds.reset(bound)
        _told.reset(quiet)


def bound() -> float:
    """In seconds; infinite where there is none."""
    return _seconds.get()


def are_told() -> bool:
    """Whether somebody wants to know what is waited for."""
    return _told.get()
