"""Whether a response does the task: what checkpoints are chosen by, and what no shaping of a reward can move."""

from __future__ import annotations

from rest_core.algorithm.rewards import same_json
from rest_core.response import Response


def succeeds(given: Response, wanted: Response) -> bool:
    """Whether `given` is well formed and makes exactly the calls of `wanted`, in any order.

    Names and arguments are compared as JSON values, types included. Where no call is wanted, a response
    block with text and no call succeeds.
    """
    if not given.well_formed:
        return False
    if not wanted.calls:
        return not given.calls and bool(given.response)
    left = list(given.calls)
    for call in wanted.calls:
        for place, other in enumerate(left):
            if other.name == call.name and same_json(other.arguments, call.arguments):
                del left[place]
                break
        else:
            return False
    return not left
