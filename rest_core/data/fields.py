"""A record of a data file, the checks of its fields, and the form in which a record is rejected."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rest_core.errors import one_line

MAX_DEPTH = 64  # of lists and objects in a record; published tool data stays below 20
TOO_DEEP = "nested too deeply"
NO_JSON_NUMBER = "a number that JSON does not have"
_MAX_BITS = 1024  # of a whole number: a float64 holds no more, and so many a reader of JSON
_ENCODINGS = 2  # how often a value may have been written as JSON: exports encode arguments that are a string already
_WHERE_WIDTH = 1000  # a long path and the field
_JSON_STARTS = '[{"'  # of lists, objects and text that is encoded once more


@dataclass(frozen=True)
class Record:
    """One entry of a data file: its fields, and where it stands, for messages and ids."""

    fields: dict[str, Any]
    where: str  # "data.jsonl: line 12"
    name: str  # unique within the file's source: "data-12"

    @classmethod
    def of(cls, value: Any, where: str, name: str, is_too_deep: bool) -> Record | Rejected:
        """The record that an entry of a file is, or why it is none."""
        if not isinstance(value, dict):
            return Rejected("not a JSON object", where, type(value).__name__)
        return Rejected(TOO_DEEP, where) if is_too_deep else cls(value, where, name)


@dataclass(frozen=True)
class Rejected:
    """A record, or one turn of it, that cannot become a sample.

    `reason` is one of few phrases, so that rejections can be counted; `where` names file, record and field; `detail`
    quotes the value.
    """

    reason: str
    where: str
    detail: str = ""

    def __str__(self) -> str:
        line = f"{shown(self.where, _WHERE_WIDTH)}: {self.reason}"
        return f"{line} ({shown(self.detail)})" if self.detail else line


class Unreadable(Exception):
    """A field of a record is missing or not of its type; carries all of a `Rejected` but the record's place."""

    def __init__(self, reason: str, field: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.field, self.detail = reason, field, detail

    def rejected(self, where: str) -> Rejected:
        """The rejection of the record at `where`."""
        return Rejected(self.reason, f"{where}: field {self.field!r}", self.detail)


def shown(text: str, width: int = 200) -> str:
    """`text` for a message: in one line no longer than `width`, and of characters that every file can hold."""
    return one_line(text.encode("utf-8", "backslashreplace").decode("utf-8"), longest=width)


def is_unicode(text: str) -> bool:
    """Whether a file can hold the text: lone surrogates are no characters."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def too_deep(value: Any, most: int = MAX_DEPTH) -> bool:
    """Whether lists and objects are nested beyond `most`; other values may be walked by recursion."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        if not level:
            return False
        below: list[Any] = []
        for entry in level:
            below += entry.values() if isinstance(entry, dict) else entry
        level = [inner for inner in below if isinstance(inner, dict | list)]
    return bool(level)


def text_too_deep(written: str, value: Any) -> bool:
    """The same of a value and the JSON it was written as, which mostly has too few brackets to be looked at."""
    return written.count("{") + written.count("[") > MAX_DEPTH and too_deep(value)


def text(value: Any, field: str) -> str:
    """`value` as a non-blank string."""
    if value is None:
        raise Unreadable("field missing", field)
    if not isinstance(value, str):
        raise Unreadable("field of the wrong type", field, f"{type(value).__name__} instead of a string")
    if not value.strip():
        raise Unreadable("field empty", field)
    return value


def items(value: Any, field: str) -> list[Any]:
    """`value` as a list; a string is read as a JSON array, a string within that once more."""
    found: list[Any] = value if isinstance(value, list) else _of_kind(list, "a list", value, field)
    return found


def mapping(value: Any, field: str) -> dict[str, Any]:
    """`value` as an object; a string is read as a JSON object, a string within that once more."""
    found: dict[str, Any] = value if isinstance(value, dict) else _of_kind(dict, "an object", value, field)
    return found


def _of_kind(kind: type, called: str, value: Any, field: str) -> Any:
    for _ in range(_ENCODINGS):
        if not isinstance(value, str):
            break
        if not value.strip():
            raise Unreadable("field empty", field)
        if value.lstrip()[0] not in _JSON_STARTS:
            break
        value = parse_json(value, field)
    if value is None:
        raise Unreadable("field missing", field)
    if not isinstance(value, kind):
        raise Unreadable("field of the wrong type", field, f"{type(value).__name__} instead of {called}")
    return value


def parse_json(value: str, field: str) -> Any:
    """The value that JSON text has; `Unreadable` where it has none."""
    try:
        parsed = _DECODER.decode(value)
    except (ValueError, RecursionError) as error:
        raise Unreadable(*json_problem(error, field)) from None
    if text_too_deep(value, parsed):
        raise Unreadable(TOO_DEEP, field)
    return parsed


def decoded(value: Any, field: str) -> Any:
    """`value`, a string of a JSON object as that object: `datasets` writes columns of mixed types so."""
    return parse_json(value, field) if isinstance(value, str) and value.lstrip().startswith("{") else value


def json_problem(error: ValueError | RecursionError, place: str) -> tuple[str, str, str]:
    """The meaning of a JSON decoder's error for the data: reason, place and detail of a rejection."""
    if isinstance(error, RecursionError):
        return TOO_DEEP, place, ""
    return "invalid JSON", place, str(error).partition("; use sys")[0]  # Python's advice is for programmers


def map_json(value: Any, change: Callable[[Any], Any]) -> Any:
    """A JSON value with `change` applied to everything in it that is no list and no object."""
    if isinstance(value, dict):
        return {key: map_json(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [map_json(inner, change) for inner in value]
    return change(value)


def odd_number(value: Any) -> bool:
    """Whether a value has a number that JSON has not got: NaN, infinite, or too large for its readers."""
    if value is None or isinstance(value, str):
        return False
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, int):
        return value.bit_length() > _MAX_BITS
    if isinstance(value, dict | list):
        return any(map(odd_number, value.values() if isinstance(value, dict) else value))
    return False


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)
