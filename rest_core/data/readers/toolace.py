"""ToolACE as published on the hub (Team-ACE/ToolACE, data.json): records of {system, conversations}.

`system` holds instructions and the tools as a JSON array ("… functions in JSON format that you can invoke:\\n[…]");
`conversations` is a list of {from: "user" | "assistant" | "tool", value}. An assistant's calls are written
`[Func Name(arg="x", n=1), …]`; any other value is said to the user. A tool's value is its result. The published system
text tells the model to write calls in that notation, so it is replaced by ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from rest_core.data.dialogues import assistant_turn, single_steps
from rest_core.data.fields import TOO_DEEP, Record, Rejected, Unreadable, items, mapping, text, too_deep
from rest_core.data.prompts import Style
from rest_core.data.python_calls import NotCalls, read_calls
from rest_core.data.tools import read_tools
from rest_core.records import Message, Sample, Tool

NAME = "toolace"
KEYS = frozenset({"system", "conversations"})
_ARRAY_OF_OBJECTS = re.compile(r"\[\s*\{")


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample an assistant turn. A turn that cannot be read takes the turns behind it along: they build on it."""
    tools = _tools(text(record.fields.get("system"), "system"))
    turns: list[Message] = []
    problem: Rejected | None = None
    entries = items(record.fields.get("conversations"), "conversations")
    for place, entry in enumerate(entries):
        field = f"conversations[{place}]"
        if problem is not None:
            if isinstance(entry, dict) and entry.get("from") == "assistant":
                yield Rejected("an earlier turn cannot be read", f"{record.where}: field {field!r}")
            continue
        try:
            turns.append(_turn(mapping(entry, field), tools, field))
        except Unreadable as error:
            problem = error.rejected(record)
            yield problem
    yield from single_steps(turns, tools, style=style, source=NAME, name=record.name)


def _tools(system: str) -> tuple[Tool, ...]:
    """The tools in the system text: the first JSON array of objects in it."""
    for start in _ARRAY_OF_OBJECTS.finditer(system):
        try:
            value, _ = json.JSONDecoder().raw_decode(system, start.start())
        except (ValueError, RecursionError):
            continue
        if too_deep(value):
            raise Unreadable(TOO_DEEP, "system")
        return read_tools(value, "system")
    raise Unreadable("tools missing", "system", "no JSON array of functions in it")


def _turn(entry: dict[str, object], tools: Sequence[Tool], field: str) -> Message:
    role, value = entry.get("from"), text(entry.get("value"), f"{field}.value").strip()
    if role == "user":
        return Message("user", value)
    if role == "tool":
        return Message("tool", value)
    if role != "assistant":
        raise Unreadable("unknown role", f"{field}.from", repr(role))
    try:
        return assistant_turn(read_calls(value, tools), None)
    except NotCalls as error:
        if any(value[1:].lstrip().startswith(f"{tool.name}(") for tool in tools if value.startswith("[")):
            raise Unreadable("call cannot be read", f"{field}.value", str(error)) from None
        return assistant_turn((), value)
