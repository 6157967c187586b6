"""xLAM-60k as published (Salesforce/xlam-function-calling-60k): {id, query, tools, answers}.

`tools` and `answers` are JSON arrays in strings: tools as {name, description, parameters: {name: {type: "str,
optional", description, default}}}, answers as {name, arguments}. Every record is one question with calls as its answer.
"""

from __future__ import annotations

from collections.abc import Iterator

from rest_core.data.dialogues import assistant_turn, single_steps
from rest_core.data.fields import Record, Rejected, Unreadable, items, mapping, text
from rest_core.data.prompts import Style
from rest_core.data.tools import read_tools, same_name
from rest_core.records import Message, Sample, ToolCall

NAME = "xlam"
KEYS = frozenset({"query", "tools", "answers"})


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample a record."""
    query = text(record.fields.get("query"), "query").strip()
    tools = read_tools(record.fields.get("tools"), "tools")
    calls = []
    for place, value in enumerate(items(record.fields.get("answers"), "answers")):
        answer = mapping(value, f"answers[{place}]")
        name = same_name(text(answer.get("name"), f"answers[{place}].name"))
        calls.append(ToolCall(name, mapping(answer.get("arguments"), f"answers[{place}].arguments")))
    if not calls:
        raise Unreadable("no call and no response", "answers")
    turns = [Message("user", query), assistant_turn(calls, None)]
    yield from single_steps(turns, tools, style=style, source=NAME, name=record.name)
