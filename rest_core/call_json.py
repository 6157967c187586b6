"""Calls as JSON objects: how they are written, and where in a text they and their parts stand.

Text is hostile: no scan recurses, and each passes over its part of the text once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rest_core.records import ToolCall

MAX_DEPTH = 32  # of a JSON value inside a call; published tool data stays below 10

_JSON_SPACE = re.compile(r"[ \t\n\r]*+")
_JSON_TOKEN = re.compile(
    r"""[ \t\n\r]*+(?:
        ("(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")   # string
      | (-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)         # number
      | (true|false|null)
      | ([{}\[\],:])
    )""",
    re.VERBOSE,
)
_ARGUMENT_KEYS = ("parameters", "arguments")
_SURROGATE = re.compile("[\ud800-\udfff]")
_ENCODER = json.JSONEncoder(ensure_ascii=False)  # once: `json.dumps` makes one a call


@dataclass(frozen=True)
class Span:
    """Characters `start` (inclusive) to `end` (exclusive) of the text."""

    start: int
    end: int


@dataclass(frozen=True)
class CallSpans:
    """Where a call stands: the whole object, its name without quotes, its arguments with their braces."""

    whole: Span
    name: Span
    arguments: Span
    key: str  # of the arguments: "parameters" or "arguments"


class Malformed(Exception):
    """The piece of text that was begun is no JSON object; `place` is where that showed."""

    def __init__(self, place: int) -> None:
        self.place = place


@dataclass(frozen=True)
class Member:
    """A key of an object and where its value stands in the scanned text."""

    key: str
    value: Span


def dumped(value: Any) -> str:
    """A value as chat templates' `tojson` writes it."""
    return _ENCODER.encode(value)


def json_call(call: ToolCall, key: str) -> str:
    """A call as a JSON object, with its arguments under `key`."""
    return dumped({"name": call.name, key: call.arguments})


def without_surrogates(value: Any) -> Any:
    """A JSON value in whose texts each half of a surrogate pair, which is no character, is U+FFFD."""
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [without_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {without_surrogates(key): without_surrogates(item) for key, item in value.items()}
    return value


def as_call(
    text: str, start: int, end: int, members: Sequence[Member], ignored: frozenset[str] = frozenset()
) -> tuple[ToolCall, CallSpans] | None:
    """The call that a JSON object spells, None where it is something else.

    Only the object's own keys count, so a "name" deeper inside is an argument like any other. A further key, a key
    that is repeated in it or in its arguments, or both spellings of the arguments make the meaning unclear: no call.

    Args:
        ignored: further keys that the object may have.
    """
    read = [member for member in members if member.key not in ignored]
    places = {member.key: member.value for member in read}
    keys = [key for key in _ARGUMENT_KEYS if key in places]
    if len(read) != 2 or len(places) != 2 or len(keys) != 1 or "name" not in places:
        return None
    name, arguments = places["name"], places[keys[0]]
    if text[name.start] != '"' or name.end - name.start == 2 or text[arguments.start] != "{":
        return None
    values = object_at(text, arguments)
    if values is None:
        return None
    call = ToolCall(json.loads(text[name.start : name.end]), values)
    return call, CallSpans(
        whole=Span(start, end), name=Span(name.start + 1, name.end - 1), arguments=arguments, key=keys[0]
    )


def object_at(text: str, span: Span) -> dict[str, Any] | None:
    """The value of a JSON object that `scan_object` has found, None where a key is repeated in it, at any depth."""
    try:
        values: dict[str, Any] = json.loads(text[span.start : span.end], object_pairs_hook=_distinct)
    except _RepeatedKey:
        return None
    return values


class _RepeatedKey(Exception):
    """An object has the same key twice, which JSON readers read in different ways."""


def _distinct(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The object of these keys and values; raises `_RepeatedKey`."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _RepeatedKey
    return values


def scan_object(text: str, start: int, limit: int) -> tuple[int, list[Member]]:
    """End of the JSON object (RFC 8259) at `start`, before `limit`, and its own members; raises `Malformed`.

    A pushdown automaton over tokens: one pass, no recursion, nothing is built. `json` alone would not do: it has no
    spans, accepts NaN, recurses, and the cost of each of its errors grows with the place of the error.
    """
    members: list[Member] = []
    stack: list[str] = []  # open brackets
    key, value_start = "", 0  # of the member at depth 1 that is being read
    expect = "value"
    position = start
    while True:
        match = _JSON_TOKEN.match(text, position, limit)
        if match is None:
            raise Malformed(skip_space(text, position))
        string, number, _literal, mark = match.groups()
        begin, position = match.start(match.lastindex or 0), match.end()
        if not stack and mark != "{":
            raise Malformed(begin)

        if expect in ("key", "key or end"):
            if string is not None:
                if len(stack) == 1:
                    key = json.loads(string)
                expect = "colon"
                continue
            if mark != "}" or expect == "key":
                raise Malformed(begin)
        elif expect == "colon":
            if mark != ":":
                raise Malformed(begin)
            expect = "value"
            continue
        elif expect in ("value", "value or end"):
            if len(stack) == 1:
                value_start = begin
            if mark in ("{", "["):
                if len(stack) > MAX_DEPTH:
                    raise Malformed(begin)
                stack.append(mark)
                expect = "key or end" if mark == "{" else "value or end"
                continue
            if mark is not None and (mark != "]" or expect == "value"):
                raise Malformed(begin)
            if number is not None and not _is_float64(number):
                raise Malformed(begin)
        elif mark == ",":  # expect == "comma or end"
            expect = "key" if stack[-1] == "{" else "value"
            continue
        elif mark != ("}" if stack[-1] == "{" else "]"):
            raise Malformed(begin)

        # Here a value is complete: a string, number or literal, or a container that `mark` has just closed.
        if mark is not None:
            stack.pop()
            if not stack:
                return position, members
        if len(stack) == 1:
            members.append(Member(key, Span(value_start, position)))
        expect = "comma or end"


def _is_float64(number: str) -> bool:
    """True where the number is in the range of a float64, as JSON readers expect (RFC 8259, section 6)."""
    return abs(float(number)) != float("inf")


def skip_space(text: str, position: int) -> int:
    """The place behind JSON's white space at `position`."""
    match = _JSON_SPACE.match(text, position)
    assert match is not None  # the pattern matches the empty string
    return match.end()
