"""Glaive's function-calling data: {"system", "chat"} (v2), or both in one text, "sample" (v1).

SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -
{"name": …, "description": …, "parameters": …}

USER: …

ASSISTANT: <functioncall> {"name": "f", "arguments": '{"a": 1}'} <|endoftext|>

FUNCTION RESPONSE: {…}

ASSISTANT: … <|endoftext|>
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rest_core.data import dialogues
from rest_core.data.fields import Record, Rejected, Unreadable, text
from rest_core.data.prompts import Style
from rest_core.data.readers import chat
from rest_core.records import Sample

NAME = "glaive"
_TURN = re.compile(r"^(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE): ?", re.MULTILINE)
_ROLES = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_END = "<|endoftext|>"


def knows(fields: Mapping[str, Any]) -> bool:
    """Whether a record has the text of a chat."""
    return any(isinstance(said := fields.get(key), str) and _TURN.search(said) for key in ("chat", "sample"))


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample an assistant turn."""
    field = "chat" if "chat" in record.fields else "sample"
    entries = _entries(text(record.fields.get(field), field), field)
    if system := record.fields.get("system"):
        entries[:0] = _entries(text(system, "system"), "system")
    dialogue = chat.dialogue(record, entries, field)
    found = list(dialogues.samples(dialogue, record, style=style, source=NAME))
    if not found:
        raise Unreadable("no assistant turn behind a user's", field)
    yield from found


def _entries(said: str, field: str) -> list[chat.Entry]:
    before, *pieces = _TURN.split(said)
    turns = [("SYSTEM", before)] if before.strip() else []  # a system text without its mark
    turns += zip(pieces[::2], pieces[1::2], strict=True)
    return [(field, chat.Plain(_ROLES[role], said.replace(_END, "").strip())) for role, said in turns]
