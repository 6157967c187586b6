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

from rest_core.data.dialogues import Dialogue
from rest_core.data.fields import Record, Unreadable, mapping
from rest_core.data.readers import chat


def read(record: Record) -> Dialogue:
    entries = chat.numbered(record.fields.get("messages"), "messages")
    target = record.fields.get("target")
    if target is None:
        unanswered = Unreadable("field missing", "target", "and no assistant message behind a user's")
        return chat.dialogue(record, entries, "messages", unanswered=unanswered)
    asked_from = len(entries)
    entries.append(("target", {"role": "assistant", **mapping(target, "target")}))
    unanswered = Unreadable("no user message", "messages")
    return chat.dialogue(record, entries, "messages", asked_from=asked_from, unanswered=unanswered)
