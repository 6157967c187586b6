"""TRL's prompt and completion: {"prompt", "completion", "tools"}.

`prompt` and `completion` are lists of messages (`rest_core.data.readers.chat` has their spellings), or texts. Only the
completion's assistant messages are answers. (TRL's "messages" are read by `jsonl`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rest_core.data import dialogues
from rest_core.data.fields import Record, Rejected, Unreadable
from rest_core.data.prompts import Style
from rest_core.data.readers import chat
from rest_core.records import Sample

NAME = "trl"
KEYS = frozenset({"prompt", "completion"})


def samples(record: Record, style: Style) -> Iterator[Sample | Rejected]:
    """One sample an assistant turn of the completion."""
    prompt = _entries(record.fields.get("prompt"), "prompt", "user")
    completion = _entries(record.fields.get("completion"), "completion", "assistant")
    dialogue = chat.dialogue(record, [*prompt, *completion], "prompt", asked_from=len(prompt))
    found = list(dialogues.samples(dialogue, record, style=style, source=NAME))
    if not found:
        raise Unreadable("no assistant turn behind a user's", "completion")
    yield from found


def _entries(value: Any, field: str, role: str) -> list[chat.Entry]:
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return [(field, chat.Plain(role, value))]
    return chat.numbered(value, field)
