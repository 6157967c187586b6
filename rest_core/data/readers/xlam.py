"""xLAM-60k as published (Salesforce/xlam-function-calling-60k): {id, query, tools, answers}.

`tools` and `answers` are JSON arrays in strings: tools as {name, description, parameters: {name: {type: "str,
optional", description, default}}}, answers as {name, arguments}. Every record is one question with calls as its answer;
an empty array of answers says that no tool fits.
"""

from __future__ import annotations

from collections.abc import Iterator

from rest_core.data import dialogues
from rest_core.data.fields import Record, Rejected
from rest_core.data.prompts import Style
from rest_core.data.readers import chat
from rest_core.records import Sample

NAME = "xlam"
KEYS = frozenset({"query", "tools", "answers"})


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample a record."""
    question = ("query", chat.Plain("user", record.fields.get("query")))
    answer = ("answers", chat.Plain("function_call", record.fields.get("answers")))
    dialogue = chat.dialogue(record, [question, answer], "query")
    yield from dialogues.samples(dialogue, record, style=style, source=NAME)
