"""From ToolRL's own prompts back to dialogues, for styles with a prompt of another form."""

from __future__ import annotations

import re
from collections.abc import Iterator

from rest_core.data.dialogues import Dialogue, Turn, Verbatim
from rest_core.data.fields import Unreadable
from rest_core.records import Message
from rest_core.response import parse

_HEADING = "**Dialogue Records History**"
_USER = "<user>"
_PART = re.compile(r"<(user|obs)>")


def dialogue_of(content: Verbatim) -> Dialogue:
    """The dialogue of a record that brings a prompt of its own, without the format instructions in its system message.

    Raises:
        Unreadable: prompt or reference is not as ToolRL writes it.
    """
    turns = [turn for message in content.prompt for turn in _turns(message, content.prompt_field)]
    answer = _assistant(content.reference, content.reference_field)
    return Dialogue(
        tools=content.tools,
        turns=(*turns, answer),
        prompt_field=content.prompt_field,
        tools_field=content.tools_field,
        asked_from=len(turns),
    )


def _turns(message: Message, field: str) -> Iterator[Turn]:
    if message.role == "assistant":
        yield _assistant(message.content, field)
    elif message.role == "tool" or (message.role == "user" and _USER not in message.content):
        yield Turn(message.role, message.content, field)
    elif message.role == "user":
        yield from _parts(message.content.strip().removeprefix(_HEADING), field)


def _parts(text: str, field: str) -> Iterator[Turn]:
    """The turns in a user message: marked ones of the user and of tools, and between them the assistant's."""
    place = 0
    while place < len(text):
        opening = _PART.search(text, place)
        if said := text[place : opening.start() if opening else len(text)].strip():
            yield _assistant(said, field)
        if opening is None:
            return
        closing = f"</{opening[1]}>"
        end = text.find(closing, opening.end())
        if end < 0:
            raise Unreadable("history cannot be taken apart", field, text[opening.start() : opening.start() + 60])
        yield Turn("user" if opening[1] == "user" else "tool", text[opening.end() : end].strip(), field)
        place = end + len(closing)


def _assistant(text: str, field: str) -> Turn:
    read = parse(text)
    if not read.well_formed:
        raise Unreadable("turn not well formed", field, read.problems[0])
    return Turn("assistant", read.response, field, read.calls, (field,) * len(read.calls), read.think)
