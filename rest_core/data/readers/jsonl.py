"""Chats in "messages", one record each: OpenAI's format, ms-swift's and TRL's, and our own with a target.

messages  the dialogue (`rest_core.data.readers.chat` has the spellings of a message).
tools     OpenAI function schemas {"type": "function", "function": {"name", "description", "parameters"}}, or the
          inner object alone; "parameters" is a JSON schema. May be a JSON string, and be called "functions".
target    the response that is wanted after `messages`: {"calls": [{"name": str, "arguments": object}],
          "response": str or null, "think": str or null}, or an assistant message. An empty list of calls without a
          response says that no tool fits. Without a target every assistant message is one: a dialogue of K assistant
          turns gives K samples.
"""

from __future__ import annotations

from collections.abc import Iterator

from rest_core.data import dialogues
from rest_core.data.fields import Record, Rejected, Unreadable, mapping
from rest_core.data.prompts import Style
from rest_core.data.readers import chat
from rest_core.records import Sample

NAME = "jsonl"
KEYS = frozenset({"messages"})


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample for the target, or one an assistant turn where there is none."""
    entries = chat.numbered(record.fields.get("messages"), "messages")
    target = record.fields.get("target")
    asked_from = 0
    if target is not None:
        asked_from = len(entries)
        entries.append(("target", {"role": "assistant", **mapping(target, "target")}))
    dialogue = chat.dialogue(record, entries, "messages", asked_from=asked_from)
    found = list(dialogues.samples(dialogue, record, style=style, source=NAME))
    if not found and target is None:
        raise Unreadable("field missing", "target", "and no assistant message behind a user's")
    if not found:
        raise Unreadable("no user message", "messages")
    yield from found
