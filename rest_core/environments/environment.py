"""The interface of a tool environment: tools, user turns, a state that calls change, and a verdict on the result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from rest_core.records import Message, Tool, ToolCall

Stop = Literal["completed", "step_limit", "prompt_too_long", "failed"]
"""Why a dialogue ended: all turns were taken; a turn had too many steps; a prompt was over the limit; the environment
could not execute a step."""


@dataclass(frozen=True)
class Verdict:
    """Whether the task was done; a valid verdict has no error."""

    valid: bool
    error_type: str | None = None  # one of few, to count by
    error: str | None = None  # in words


class EnvironmentFailed(Exception):
    """A step could not be executed, or a turn not begun, and the dialogue ends there; the message says why, for
    people."""


class Environment(Protocol):
    """The environment of one dialogue. Its state is its own: `step` changes it and `verdict` judges it."""

    @property
    def tools(self) -> tuple[Tool, ...]:
        """The tools that may be called now. They may change between turns."""
        ...

    @property
    def documents(self) -> tuple[dict[str, Any], ...] | None:
        """The source's own descriptions of the tools, where `tools` is a translation of them."""
        ...

    def user_turn(self, said: str) -> tuple[Message, ...] | None:
        """Begin the next turn: the messages that open it; None where no turn is left.

        Args:
            said: the response that ended the turn before, which has no call; "" at the first turn.

        Raises:
            EnvironmentFailed: the turn cannot begin; the dialogue ends.
        """
        ...

    def step(self, calls: Sequence[ToolCall]) -> list[str]:
        """Execute calls, at least one, in their order; the text of each result.

        Names and arguments are model output and unchecked: a call that cannot be made has an error as its result.

        Raises:
            EnvironmentFailed: the calls cannot be executed; the dialogue ends.
        """
        ...

    def verdict(self, stop: Stop) -> Verdict:
        """Judge the state after the dialogue has ended."""
        ...
