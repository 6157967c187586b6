"""A warning that a model hardly calls tools where it should, mostly because the style cannot read its calls."""

from __future__ import annotations

from collections.abc import Collection

FEW = 0.05
FEW_CALLS = (
    f"fewer than {FEW:.0%} of the responses that should hold a call do; a model that writes calls in another way needs "
    "another model.prompt_style or model.tool_parser, or a warm-up"
)
_ENOUGH = 20  # responses, from which on a share says something


def few_calls(made: Collection[bool]) -> str | None:
    """The warning where fewer than 5 % of the responses that should hold a call do, None elsewhere.

    Args:
        made: of each response that should hold a call, whether it does.
    """
    return FEW_CALLS if len(made) >= _ENOUGH and sum(made) < FEW * len(made) else None
