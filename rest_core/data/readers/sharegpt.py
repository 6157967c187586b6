"""ShareGPT's "conversations", as LLaMA-Factory reads them and Hermes' function-calling data has them.

conversations  the dialogue (`rest_core.data.readers.chat` has the spellings of a turn): {"from", "value"} or
               {"role", "content"}; calls stand in turns of their own, or as `<tool_call>` in an assistant's.
tools          a list, or a JSON string of one; else the system text lists them.
system         a system text beside the dialogue.
"""

from __future__ import annotations

from collections.abc import Iterator

from rest_core.data import dialogues
from rest_core.data.fields import Record, Rejected, Unreadable, text
from rest_core.data.prompts import Style
from rest_core.data.readers import chat
from rest_core.records import Sample

NAME = "sharegpt"
KEYS = frozenset({"conversations"})


def samples(record: Record, style: Style, source: str = NAME) -> Iterator[Sample | Rejected]:
    """One sample an assistant turn."""
    entries = chat.numbered(record.fields.get("conversations"), "conversations")
    if system := record.fields.get("system"):
        entries.insert(0, ("system", chat.Plain("system", text(system, "system"))))
    dialogue = chat.dialogue(record, entries, "conversations")
    found = False
    for entry in dialogues.samples(dialogue, record, style=style, source=source):
        found = True
        yield entry
    if not found:
        raise Unreadable("no assistant turn behind a user's", "conversations")
