"""Requests that change something are sent once; where no clear answer comes, what can be seen afterwards decides."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipelines.cluster.errors import ApiError
from rest_core.errors import EXIT_INTERRUPTED, Preempted

T = TypeVar("T")

LOOKS = (0.0, 2.0, 5.0)  # seconds before each look for what the request should have done


def send_once(
    send: Callable[[], T], look: Callable[[], T | None], *, what: str, advice: str, shared: bool = False
) -> T:
    """`send()`, exactly once; where its answer is unclear, what `look()` finds, None meaning nothing yet.

    Args:
        send: the request.
        look: reads what the request should have done; may be repeated.
        what: what should be so afterwards: "run x was created".
        advice: what to do where that stays unknown.
        shared: whether what somebody else has made in the meantime (409) does as well.

    Raises:
        ApiError: the request was refused, or nothing shows that it was carried out; the message says what is known.
        Preempted: interrupted before that was known.
    """
    try:
        try:
            return send()
        except ApiError as error:
            if shared and error.status == 409 and (known := look()) is not None:
                return known
            if not error.unclear:
                raise
            return _seen(look, error, what=what, advice=advice)
    except KeyboardInterrupt:
        raise Preempted(
            f"interrupted before an answer came; whether {what} is not known: {advice}", exit_code=EXIT_INTERRUPTED
        ) from None


def change_once(send: Callable[[], object], done: Callable[[], bool], *, what: str, advice: str) -> None:
    """The same for a change of what is there already; `done()` says whether it can be seen."""

    def sent() -> bool:
        send()
        return True

    send_once(sent, lambda: done() or None, what=what, advice=advice)


def _seen(look: Callable[[], T | None], lost: ApiError, *, what: str, advice: str) -> T:
    for seconds in LOOKS:
        time.sleep(seconds)
        try:
            found = look()
        except ApiError as error:
            raise ApiError(
                f"{lost.fact}. It was sent once; whether {what} is not known, because looking failed too "
                f"({error.fact})",
                advice,
                status=error.status,
            ) from None
        if found is not None:
            return found
    raise ApiError(
        f"{lost.fact}. It was sent once, and {sum(LOOKS):g} s later nothing shows that {what}",
        advice,
        status=lost.status,
    )
