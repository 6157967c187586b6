"""Dialogues as single-step samples: the history is the prompt, the next assistant turn the reference.

The setting of ResT and ToolRL: a dialogue of K assistant turns becomes K samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rest_core.data.prompts import THINK_CALL, THINK_RESPOND, Style, render
from rest_core.records import Message, Sample, Tool, ToolCall
from rest_core.response import render as render_response


def assistant_turn(calls: Sequence[ToolCall], response: str | None, think: str | None = None) -> Message:
    """An assistant turn in the project's response format; without a thought of its own it gets ToolRL's."""
    thought = think or (THINK_CALL if calls else THINK_RESPOND)
    return Message("assistant", render_response(think=thought, calls=calls, response=response or None))


def single_steps(
    turns: Sequence[Message], tools: Sequence[Tool], *, style: Style, source: str, name: str
) -> Iterator[Sample]:
    """A sample for every assistant turn that has a user turn before it.

    Args:
        turns: the dialogue; assistant turns as `assistant_turn` writes them.
        source, name: the sample of turn n has the id `source/name`, `.n` added where the dialogue has several.
    """
    several = sum(turn.role == "assistant" for turn in turns) > 1
    for place, turn in enumerate(turns):
        history = turns[:place]
        if turn.role == "assistant" and any(earlier.role == "user" for earlier in history):
            yield Sample(
                id=f"{source}/{name}.{place}" if several else f"{source}/{name}",
                source=source,
                prompt=render(style, tools, history),
                tools=tuple(tools),
                reference=turn.content,
            )
