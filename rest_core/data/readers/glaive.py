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
from collections.abc import Mapping
from typing import Any

from rest_core.data.dialogues import Dialogue
from rest_core.data.fields import Record, text
from rest_core.data.readers import chat

_TURN = re.compile(r"^(SYSTEM|USER|ASSISTANT|FUNCTION RESPONSE): ?", re.MULTILINE)
_ROLES = {"SYSTEM": "system", "USER": "user", "ASSISTANT": "assistant", "FUNCTION RESPONSE": "tool"}
_END = "<|endoftext|>"


def read(record: Record) -> Dialogue:
    field = "chat" if "chat" in record.fields else "sample"
    entries = _entries(text(record.fields.get(field), field), field)
    if system := record.fields.get("system"):
        entries[:0] = _entries(text(system, "system"), "system")
    return chat.dialogue(record, entries, field)


def has_chat(fields: Mapping[str, Any]) -> bool:
    """Whether a record has the text of a chat."""
    return any(isinstance(value := fields.get(key), str) and _TURN.search(value) for key in ("chat", "sample"))


def _entries(value: str, field: str) -> list[chat.Entry]:
    before, *pieces = _TURN.split(value)
    turns = [("SYSTEM", before)] if before.strip() else []  # a system text without its mark
    turns += zip(pieces[::2], pieces[1::2], strict=True)
    return [(field, chat.Plain(_ROLES[role], content.replace(_END, "").strip())) for role, content in turns]
