"""Python literals in a text, read without `eval`: strings, numbers, constants, lists, tuples and dicts.

A pushdown automaton over tokens, as in `rest_core.call_json`: one pass, no recursion, nesting bounded, and the place of
an error or of the literal's end is known, as model output needs it (`rest_core.data.python_calls` reads calls in data
files, with names of any kind and arithmetic). Values are JSON values; a tuple becomes a list.
"""

from __future__ import annotations

import ast
import re
import warnings
from dataclasses import dataclass, field
from typing import Any

from rest_core.call_json import MAX_DEPTH, Malformed, skip_space

_TOKEN = re.compile(
    r"""[ \t\n\r]*+(?:
        ('(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+")                          # 1 string
      | ([+-]?(?:(?:0|[1-9][0-9]*+)(?:\.[0-9]*+)?|\.[0-9]++)(?:[eE][+-]?[0-9]++)?)(?![\w.])   # 2 number
      | (True|False|None|true|false|null)(?!\w)                                  # 3 constant
      | ([\[\](){},:])                                                           # 4 mark
    )""",
    re.VERBOSE | re.DOTALL,
)
_CONSTANTS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_CLOSES = {"[": "]", "(": ")", "{": "}"}


@dataclass
class _Open:
    """A container that is being read."""

    mark: str
    items: list[Any] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    key: str | None = None  # of a dict, whose value comes next
    filled: bool = False  # a value has been read, and no comma behind it


def read_literal(text: str, start: int) -> tuple[Any, int]:
    """The literal at `start`, white space before it skipped, and where it ends; raises `Malformed`."""
    stack: list[_Open] = []
    position = start
    while True:
        match = _TOKEN.match(text, position)
        if match is None:
            raise Malformed(skip_space(text, position))
        string, number, constant, mark = match.groups()
        begin, position = match.start(match.lastindex or 0), match.end()
        if mark in _CLOSES:
            if len(stack) >= MAX_DEPTH or (stack and not _wants_value(stack[-1])):
                raise Malformed(begin)
            stack.append(_Open(mark))
            continue
        value: Any
        if mark is None:
            value = _scalar(string, number, constant, begin)
        elif not stack:
            raise Malformed(begin)
        elif mark == _CLOSES[stack[-1].mark]:
            value = _closed(stack.pop(), begin)
        else:
            _take_mark(stack[-1], mark, begin)
            continue
        if not stack:
            return value, position
        _take_value(stack[-1], value, begin)


def _wants_value(container: _Open) -> bool:
    return not container.filled and (container.mark != "{" or container.key is not None)


def _take_mark(container: _Open, mark: str, place: int) -> None:
    """A comma or a colon inside of `container`."""
    if mark == "," and container.filled and (container.mark != "{" or not container.items):
        container.filled = False
    elif mark == ":" and container.mark == "{" and container.filled and container.items:
        container.filled = False
        key = container.items.pop()
        if not isinstance(key, str) or key in container.values:
            raise Malformed(place)
        container.key = key
    else:
        raise Malformed(place)


def _take_value(container: _Open, value: Any, place: int) -> None:
    if container.filled or (container.mark == "{" and container.items):
        raise Malformed(place)
    if container.key is not None:
        container.values[container.key] = value
        container.key = None
        container.filled = True
        return
    container.items.append(value)  # of a dict: the key, until its colon comes
    container.filled = True


def _closed(container: _Open, place: int) -> Any:
    if container.mark == "(" and container.filled and len(container.items) == 1:
        return container.items[0]  # no tuple, but a value in brackets
    if container.mark != "{":
        return container.items
    if container.key is not None or container.items:
        raise Malformed(place)
    return container.values


def _scalar(string: str | None, number: str | None, constant: str | None, place: int) -> Any:
    if constant is not None:
        return _CONSTANTS[constant]
    if number is not None:
        if abs(float(number)) == float("inf"):
            raise Malformed(place)
        return int(number) if number.lstrip("+-").isdigit() else float(number)
    assert string is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d"
            return ast.literal_eval(string)
    except (ValueError, SyntaxError):  # "\x", "\N{no such name}", NUL
        raise Malformed(place) from None
