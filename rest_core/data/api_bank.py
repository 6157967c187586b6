"""API-Bank's files, as ToolRL processed them (benchmarks/API-Bank of qiancheng0/ToolRL).

`level-<n>-api_processed.json` holds items of {system, user, answer}; system and user message are the whole prompt,
format instructions included. `answer` is one call {"name", "parameters"}, bare or in a list.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rest_core.data.fields import Record, Unreadable, mapping, text
from rest_core.data.files import sound_records
from rest_core.errors import UserError
from rest_core.records import Message, ToolCall

LEVELS = (1, 2, 3)
_REMEDY = "give ToolRL's processed API-Bank files"


@dataclass(frozen=True)
class Item:
    """One question and the call that answers it."""

    level: int
    prompt: tuple[Message, ...]
    wanted: ToolCall


def read_level(directory: Path, level: int) -> list[Item]:
    """The items of one level.

    Raises:
        UserError: the file is missing or an item in it is not as described; names file, item and field.
    """
    items = []
    for record in sound_records(directory / f"level-{level}-api_processed.json", _REMEDY):
        try:
            items.append(_item(record, level))
        except Unreadable as error:
            raise UserError(f"{error.rejected(record.where)}; {_REMEDY}") from None
    return items


def _item(record: Record, level: int) -> Item:
    system, user = text(record.fields.get("system"), "system"), text(record.fields.get("user"), "user")
    answer = record.fields.get("answer")
    if isinstance(answer, list):
        if len(answer) != 1:
            raise Unreadable("not exactly one call", "answer", f"{len(answer)} calls")
        answer = answer[0]
    call = mapping(answer, "answer")
    wanted = ToolCall(text(call.get("name"), "answer.name"), mapping(call.get("parameters"), "answer.parameters"))
    return Item(level, (Message("system", system), Message("user", user)), wanted)
