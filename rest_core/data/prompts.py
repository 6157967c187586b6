"""What prompts say: the tools that ToolRL's files list in them, and the user's turns in any style."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rest_core.data.fields import Unreadable
from rest_core.data.python_calls import NotCalls, literal
from rest_core.data.schemas import DEFINITIONS
from rest_core.data.tools import same_name
from rest_core.records import Message, Tool

_LISTED_FROM, _LISTED_TO = "following tools:\n", "\n\n**Steps for Each Turn**"
_LISTED_HEAD = re.compile(r"\d+\. (?:Name: (?P<name>.*)\nDescription: ?|(?P<short>[^:\n]+): ?)")
_LISTED_PARAMETERS = "\nParameters: "
_USER_FROM, _USER_TO = "<user>", "</user>"


def lists_tools(system: str) -> bool:
    """Whether a system message has a list of tools in ToolRL's style."""
    return _LISTED_FROM in system


def listed_tools(system: str, field: str = "system") -> tuple[Tool, ...]:
    """The tools that a system message in ToolRL's style lists, as ToolRL and its API-Bank files write them.

    Properties are kept as they stand there, ToolRL's own names of types included ("str, optional"), so that the
    style `toolrl` gives the text back. It does not name the required ones.

    Args:
        field: where the user's record has the message, for errors.

    Raises:
        Unreadable: the message has no such list, or an entry cannot be read.
    """
    listed = _between(system, _LISTED_FROM, _LISTED_TO)
    if not listed:
        raise Unreadable("tools missing", field, "no list of tools in ToolRL's format")
    tools = []
    # Every entry ends with its line of parameters; a description may hold lines that look like an entry's first.
    rest = listed[0]
    while rest.strip():
        head = _LISTED_HEAD.match(rest)
        description, found, tail = rest[head.end() if head else 0 :].partition(_LISTED_PARAMETERS)
        if head is None or not found:
            raise Unreadable("tool list cannot be read", field, rest[:60])
        parameters, _, rest = tail.partition("\n")
        properties = _properties(parameters, field)
        definitions = {key: properties.pop(key) for key in DEFINITIONS[:1] if key in properties}
        schema = {"type": "object", "properties": properties, "required": [], **definitions}
        tools.append(Tool(same_name(head["name"] or head["short"]), description, schema))
    return tuple(tools)


def user_turns(prompt: Sequence[Message]) -> list[str]:
    """The user turns of a prompt: those between <user> and </user> in ToolRL's style, else whole user messages."""
    turns: list[str] = []
    for message in prompt:
        if message.role == "user":
            tagged = _between(message.content, _USER_FROM, _USER_TO, every=True)
            turns += [turn.strip() for turn in tagged or [message.content]]
    return turns


def _between(text: str, start: str, end: str, *, every: bool = False) -> list[str]:
    """The text between the first `start` and the next `end`, or between every such pair; one pass over the text."""
    found: list[str] = []
    place = text.find(start)
    while place >= 0 and (every or not found):
        stop = text.find(end, place + len(start))
        if stop < 0:
            break
        found.append(text[place + len(start) : stop])
        place = text.find(start, stop + len(end))
    return found


def _properties(text: str, field: str) -> dict[str, Any]:
    """A line of parameters: JSON in ToolRL's files, a Python dict in API-Bank's."""
    try:
        value = literal(text)
    except NotCalls as error:
        raise Unreadable("tool list cannot be read", field, str(error)) from None
    if not isinstance(value, dict):
        raise Unreadable("tool list cannot be read", field, f"parameters {text[:60]!r}")
    return value
