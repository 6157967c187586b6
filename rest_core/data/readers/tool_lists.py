"""The tools of a dialogue: in a field of the record, or listed in a system text."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice
from typing import Any

from rest_core.data import written_calls
from rest_core.data.fields import TOO_DEEP, Record, Unreadable, too_deep
from rest_core.data.python_calls import NotCalls
from rest_core.data.tools import read_tools
from rest_core.records import Tool

_KEYS = ("tools", "functions")
_FROM, _TO = "<tools>", "</tools>"
_ARRAY_OF_OBJECTS = re.compile(r"\[\s*+\{")
_ATTEMPTS = 8  # places in a system text where a list of tools may begin: each costs a pass over the text


def find_tools(record: Record, system_texts: Sequence[tuple[int, str, str]]) -> tuple[tuple[Tool, ...], str, set[int]]:
    """The tools, the field that has them, and the places of the system turns that are left out: they list the tools.

    Args:
        system_texts: place, field and text of the dialogue's system turns.

    Raises:
        Unreadable: there are none, or they cannot be read.
    """
    left_out = {place for place, _, text in system_texts if _TO in text}
    for key in _KEYS:
        if record.fields.get(key) not in (None, "", [], "[]", {}):
            return read_tools(record.fields[key], key), key, left_out
    for place, field, text in system_texts:
        if (tools := tools_in_text(text, field)) is not None:
            return tools, field, left_out | {place}
    given = next((key for key in _KEYS if key in record.fields), None)
    if system_texts and given is None:
        raise Unreadable("tools missing", system_texts[0][1], "no list of tools in it, nor in a field 'tools'")
    field = given or _KEYS[0]
    return read_tools(record.fields.get(field), field), field, left_out  # names the problem


def tools_in_text(text: str, field: str) -> tuple[Tool, ...] | None:
    """The tools that a system text lists, None where it lists none.

    Raises:
        Unreadable: the list holds something else.
    """
    start = text.find(_FROM)
    stop = text.find(_TO, start)
    # Hermes' own text says "within <tools></tools> XML tags" before it lists them.
    while start >= 0 and stop >= 0 and not text[start + len(_FROM) : stop].strip():
        start = text.find(_FROM, stop)
        stop = text.find(_TO, start)
    if 0 <= start < stop:
        try:
            return read_tools(written_calls.listed(text[start + len(_FROM) : stop]), field)
        except NotCalls as error:
            raise Unreadable("tool list cannot be read", field, str(error)) from None
    if (tools := _array(text, field)) is not None:
        return tools
    if (place := text.find("{")) < 0:
        return None
    objects, _ = written_calls.json_values(text, place)
    return read_tools(objects, field) if objects and all(map(_is_tool, objects)) else None


def begins_array(text: str) -> bool:
    """Whether a system text has the beginning of a JSON array of objects and no `<tools>`, like ToolACE's."""
    return _TO not in text and _ARRAY_OF_OBJECTS.search(text) is not None


def _array(text: str, field: str) -> tuple[Tool, ...] | None:
    """The tools of the first JSON array of objects in a text, None where there is none."""
    decoder = json.JSONDecoder()
    for start in islice(_ARRAY_OF_OBJECTS.finditer(text), _ATTEMPTS):
        try:
            objects, _ = decoder.raw_decode(text, start.start())
        except (ValueError, RecursionError):
            continue
        if too_deep(objects):
            raise Unreadable(TOO_DEEP, field)
        if any(map(_is_tool, objects)):
            return read_tools(objects, field)
    return None


def _is_tool(value: Any) -> bool:
    """Whether an object in a text is a tool, and not an example of an answer that has a name."""
    return isinstance(value, dict) and (
        "function" in value or ("name" in value and ("parameters" in value or "description" in value))
    )
