"""Stopping on a signal: SIGTERM (pre-emption), or SIGINT once, lets a training leave with a checkpoint.

The weights, moments and running means in memory are those of the last step's end until an optimizer update begins.
Up to there a single process stops at once and throws the begun work away; later it finishes the step first. Several
processes always finish the step and agree at its end, because each would wait for the others.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

from rest_core.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, Preempted


class StopRequested(BaseException):
    """Raised where the training may be left: everything in memory is as it was at the end of the last step.

    Not an `Exception`, so that no code between which handles errors takes it for one.
    """


class GraceOver(BaseException):
    """The grace period ended before the step did: what is in memory is of no use."""


class Stopper:
    """For as long as its `with` block lasts, SIGTERM and SIGINT ask for a stop; a second SIGINT interrupts as usual.

    Outside the main thread, where Python lets nobody handle signals, nothing changes.

    Args:
        grace_seconds: from the signal to the moment when the training must have been left.
        alone: this is the only process, so that nobody waits for it.
    """

    def __init__(self, grace_seconds: float, *, alone: bool) -> None:
        self.signal: signal.Signals | None = None  # what asked for the stop
        self._agreed: signal.Signals | None = None  # what all processes have agreed to stop for
        self._grace, self._alone = grace_seconds, alone
        self._at_once = False  # whether leaving now loses nothing but begun work
        self._shielded = False
        self._deadline = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number, handler in (
                (signal.SIGTERM, self._handle),
                (signal.SIGINT, self._handle),
                (signal.SIGALRM, self._alarm),
            ):
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._at_once = False
        if self.signal is not None:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self, gather: Callable[[list[Any]], list[Any]]) -> None:
        """Stop, all processes together, when any has been asked to; `gather` joins the lists of all processes."""
        signals = [found for found in gather([self.signal]) if found is not None]
        if signals:
            self._agreed = signals[0]
            raise StopRequested

    def preempted(self, message: str) -> Preempted:
        """What the training ends with; the signal begins the message, and decides the exit code."""
        number = self._agreed or self.signal
        assert number is not None
        exit_code = EXIT_INTERRUPTED if number is signal.SIGINT else EXIT_PREEMPTED
        return Preempted(f"{number.name}: {message}", exit_code=exit_code)

    @property
    def seconds_left(self) -> float:
        """Of the grace period."""
        return max(0.0, self._deadline - time.monotonic())

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """A block whose work can be thrown away up to the first optimizer update in it (`hold`)."""
        self._at_once = self._alone
        try:
            if self._alone and self.signal is not None:
                raise StopRequested
            yield
        finally:
            self._at_once = False

    def hold(self, *_: Any) -> None:
        """From here to the end of the block work cannot be thrown away; a hook before an optimizer's step."""
        self._at_once = False

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """A block that is finished even when the grace period ends in it: the writing of a checkpoint."""
        before, self._shielded = self._shielded, True
        try:
            yield
        finally:
            self._shielded = before

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Runs in the main thread between two of its instructions: it must not log, write or take a lock."""
        if self.signal is None:
            self.signal = signal.Signals(number)
            self._deadline = time.monotonic() + self._grace
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, self._grace))
            if self._at_once:
                self._at_once = False
                raise StopRequested
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and not self._shielded:
            raise GraceOver
