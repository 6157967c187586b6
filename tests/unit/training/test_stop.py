from __future__ import annotations

import os
import signal
import threading

import pytest

from rest_core.training.stop import GraceOver, Stopper, StopRequested

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def wait_for_ever() -> None:
    while True:
        signal.pause()


def test_work_that_can_be_thrown_away_is_left_at_once() -> None:
    with Stopper(60, alone=True) as stop:
        with pytest.raises(StopRequested), stop.at_once():
            send(signal.SIGTERM)
            pytest.fail("went on")
        assert stop.signal is signal.SIGTERM and 0 < stop.seconds_left <= 60
        with pytest.raises(StopRequested), stop.at_once():
            pytest.fail("a new piece of work was begun")


@pytest.mark.parametrize("alone", [True, False])
def test_other_work_goes_on(alone: bool) -> None:
    with Stopper(60, alone=alone) as stop:
        with stop.at_once():
            stop.hold()  # an optimizer update begins
            send(signal.SIGTERM)
        send(signal.SIGTERM)  # again changes nothing
        assert stop.signal is signal.SIGTERM
    if not alone:
        with Stopper(60, alone=False) as stop, stop.at_once():
            send(signal.SIGTERM)  # the others would wait


def test_the_grace_period_ends_work_but_not_the_writing_of_a_checkpoint() -> None:
    with Stopper(0.05, alone=True) as stop, stop.shielded(), stop.shielded():
        send(signal.SIGTERM)
        while stop.seconds_left:
            signal.sigtimedwait([], 0.01)
    with Stopper(0.05, alone=True), pytest.raises(GraceOver):
        send(signal.SIGTERM)
        wait_for_ever()


def test_a_second_interrupt_is_an_interrupt() -> None:
    with Stopper(60, alone=True), pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)
        send(signal.SIGINT)
        wait_for_ever()


def test_what_handled_signals_before_does_so_again() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with Stopper(60, alone=True):
        assert all(signal.getsignal(n) != handler for n, handler in zip(NUMBERS, before, strict=True))
        send(signal.SIGTERM)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_outside_the_main_thread_nothing_changes() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    seen: list[bool] = []

    def work() -> None:
        with Stopper(60, alone=True) as stop, stop.at_once():
            seen.append([signal.getsignal(number) for number in NUMBERS] == before)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]
