"""TRL's prompt and completion: {"prompt", "completion", "tools"}.

`prompt` and `completion` are lists of messages (`rest_core.data.readers.chat` has their spellings), or texts. Only the
completion's assistant messages are answers. (TRL's "messages" are read by `jsonl`.)
"""

from __future__ import annotations

from typing import Any

from rest_core.data.dialogues import Dialogue
from rest_core.data.fields import Record, Unreadable
from rest_core.data.readers import chat


def read(record: Record) -> Dialogue:
    prompt = _entries(record.fields.get("prompt"), "prompt", "user")
    completion = _entries(record.fields.get("completion"), "completion", "assistant")
    unanswered = Unreadable("no assistant turn behind a user's", "completion")
    return chat.dialogue(record, [*prompt, *completion], "prompt", asked_from=len(prompt), unanswered=unanswered)


def _entries(value: Any, field: str, role: str) -> list[chat.Entry]:
    if isinstance(value, str) and not value.lstrip().startswith("[{"):
        return [(field, chat.Plain(role, value))]
    return chat.numbered(value, field)
