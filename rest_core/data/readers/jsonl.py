"""The project's plain format for own data: one JSON object a line, {messages, tools, target}.

messages  the dialogue, as in OpenAI's chat format: {"role": "system" | "user" | "assistant" | "tool", "content": str}.
          An assistant message may have "tool_calls": [{"type": "function", "function": {"name": str,
          "arguments": object or JSON string}}] beside or instead of "content", and "think": str.
tools     OpenAI function schemas {"type": "function", "function": {"name", "description", "parameters"}}, or the
          inner object alone; "parameters" is a JSON schema. May be a JSON string.
target    the response that is wanted after `messages`: {"calls": [{"name": str, "arguments": object}],
          "response": str or null, "think": str or null}, or an assistant message as above. Without a target every
          assistant message is one: a dialogue of K assistant turns gives K samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rest_core.data.dialogues import assistant_turn, single_steps
from rest_core.data.fields import Record, Rejected, Unreadable, items, mapping, text
from rest_core.data.prompts import Style
from rest_core.data.tools import read_tools, same_name
from rest_core.records import Message, Sample, ToolCall

NAME = "jsonl"
KEYS = frozenset({"messages", "tools"})


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample for the target, or one an assistant turn where there is none."""
    tools = read_tools(record.fields.get("tools"), "tools")
    entries = items(record.fields.get("messages"), "messages")
    turns = [_message(mapping(entry, f"messages[{n}]"), f"messages[{n}]") for n, entry in enumerate(entries)]
    if record.fields.get("target") is None:
        found = list(single_steps(turns, tools, style=style, source=NAME, name=record.name))
        if not found:
            raise Unreadable("field missing", "target", "and no assistant message behind a user's")
        yield from found
        return
    target = _assistant(mapping(record.fields["target"], "target"), "target")
    last = list(single_steps([*turns, target], tools, style=style, source=NAME, name=record.name))[-1:]
    if not last:
        raise Unreadable("no user message", "messages")
    yield from last


def _message(fields: Mapping[str, Any], field: str) -> Message:
    role = fields.get("role")
    if role == "assistant":
        return _assistant(fields, field)
    if role in ("system", "user", "tool"):
        return Message(role, text(fields.get("content"), f"{field}.content"))
    raise Unreadable("unknown role", f"{field}.role", repr(role))


def _assistant(fields: Mapping[str, Any], field: str) -> Message:
    """An assistant message, or a target: both spell calls, words and thoughts."""
    key = "calls" if "calls" in fields else "tool_calls"
    calls = [
        _call(mapping(value, f"{field}.{key}[{n}]"), f"{field}.{key}[{n}]")
        for n, value in enumerate(items(fields.get(key) or [], f"{field}.{key}"))
    ]
    said = fields.get("response") or fields.get("content")
    response = text(said, f"{field}.response").strip() if said is not None else None
    think = fields.get("think")
    if not calls and not response:
        raise Unreadable("no call and no response", field)
    return assistant_turn(calls, response, text(think, f"{field}.think").strip() if think else None)


def _call(fields: Mapping[str, Any], field: str) -> ToolCall:
    inner = mapping(fields["function"], f"{field}.function") if "function" in fields else fields
    name = same_name(text(inner.get("name"), f"{field}.name"))
    return ToolCall(name, mapping(inner.get("arguments"), f"{field}.arguments"))
