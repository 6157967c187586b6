"""Calls written like Python: BFCL's `f(n=20, p=1/6)` and ToolACE's `[Market Trends API(country="us"), g()]`.

Not Python's own parser: ToolACE's names have blanks, slashes and brackets in them, and argument names may be keywords.
Nothing is executed: a value is a literal, or arithmetic on number literals.
"""

from __future__ import annotations

import ast
import json
import operator
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from rest_core.data.fields import NO_JSON_NUMBER, TOO_DEEP, Unreadable, map_json, odd_number, too_deep
from rest_core.data.tools import by_name, same_name
from rest_core.records import Tool, ToolCall

_NO_KEY = frozenset("()[]{}\"',")  # characters that no argument's name has
_MAX_HEAD = 200  # characters in which a name with brackets in it is looked for; published ones stay below 100
_OPENING, _CLOSING = "([{", ")]}"
_CONSTANTS = {"true": True, "false": False, "null": None, "none": None}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class NotCalls(ValueError):
    """The text is no list of calls."""

    def unreadable(self, field: str) -> Unreadable:
        """The rejection of a record whose field has the text."""
        return Unreadable("call cannot be read", field, str(self))


def read_calls(text: str, tools: Sequence[Tool]) -> list[ToolCall]:
    """The calls of `[A(x=1), B(y="z")]`; a name that `tools` has is found even with brackets in it.

    An argument without a name takes the name of the tool's parameter at its place.

    Raises:
        NotCalls: the text is anything else.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        raise NotCalls("not enclosed in [ ]")
    known = frozenset(tool.name for tool in tools)
    tool_of = by_name(tools)
    calls = []
    for piece in _pieces(text[1:-1]):
        name, arguments = _name_and_arguments(piece, known)
        tool = tool_of.get(same_name(name))
        parameters = list(tool.parameters["properties"]) if tool else []
        calls.append(ToolCall(tool.name if tool else same_name(name), _arguments(arguments, parameters)))
    if not calls:
        raise NotCalls("no call between the brackets")
    return calls


def literal(text: str) -> Any:
    """The value of a JSON or Python literal, or of arithmetic on numbers such as `1/6`; tuples become lists.

    Raises:
        NotCalls: it is anything else, or not a JSON value (NaN, bytes, sets …).
    """
    text = text.strip()
    try:
        # JSON first: its escapes differ from Python's ("\\/", surrogate pairs), and the data was written by models.
        return _json_value(json.loads(text, strict=False))
    except (ValueError, RecursionError):
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # "\d" in a string
            return _json_value(_value(ast.parse(text, mode="eval").body))
    except (ValueError, SyntaxError, TypeError, ArithmeticError, RecursionError, MemoryError) as error:
        raise NotCalls(f"{text[:60]!r} is no literal: {error}") from None


def _pieces(text: str) -> Iterator[str]:
    """`text` cut at the commas outside quotes and brackets."""
    depth, quote, start, index = 0, "", 0, 0
    while index < len(text):
        character = text[index]
        if quote:
            if character == "\\":
                index += 1
            elif character == quote:
                quote = ""
        elif character in "\"'" and _opens_string(text, index):
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
            if depth < 0:
                raise NotCalls(f"{character!r} closes nothing")
        elif character == "," and depth == 0:
            yield text[start:index]
            start = index + 1
        index += 1
    if quote or depth:
        raise NotCalls("a quote or bracket is not closed")
    if text[start:].strip():
        yield text[start:]


def _opens_string(text: str, index: int) -> bool:
    """A quote after a letter is an apostrophe in a name ("Driver's Record(…)"), not the start of a string."""
    return index == 0 or not text[index - 1].isalnum()


def _name_and_arguments(piece: str, known: Collection[str]) -> tuple[str, str]:
    piece = piece.strip()
    if not piece.endswith(")"):
        raise NotCalls(f"{piece[:60]!r} is no call")
    brackets = [place for place, character in enumerate(piece[:_MAX_HEAD]) if character == "("]
    for place in reversed(brackets):  # the longest name first
        if (name := piece[:place].rstrip()) in known:
            return name, piece[place + 1 : -1]
    name, opened, _ = piece.partition("(")
    if not opened or not name.strip():
        raise NotCalls(f"{piece[:60]!r} is no call")
    return name, piece[len(name) + 1 : -1]


def _arguments(text: str, parameters: Sequence[str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    for place, piece in enumerate(_pieces(text)):
        name, equals, given = piece.partition("=")
        if equals and name.strip() and not given.startswith("=") and _NO_KEY.isdisjoint(name):
            key, value = name.strip(), given
        elif place < len(parameters):
            key, value = parameters[place], piece
        else:
            raise NotCalls(f"argument {piece.strip()[:60]!r} has no name")
        if key in arguments:
            raise NotCalls(f"argument {key!r} is given twice")
        arguments[key] = literal(value)
    return arguments


def _value(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name.lower() in _CONSTANTS:
            return _CONSTANTS[name.lower()]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [_value(element) for element in elements]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_number(left), _number(right))
    raise ValueError(f"{type(node).__name__} is not allowed")


def _number(node: ast.expr) -> int | float:
    value = _value(node)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{type(value).__name__} is no number")
    if odd_number(value):  # before it is multiplied with others of its kind
        raise ValueError(NO_JSON_NUMBER)
    return value


def _key(node: ast.expr | None) -> str:
    key = _value(node) if node is not None else None
    if not isinstance(key, str):
        raise ValueError(f"{key!r:.30} is no key of a JSON object")
    return key


def _json_value(value: Any) -> Any:
    """`value` where it is JSON; else `ValueError`."""
    if too_deep(value):
        raise ValueError(TOO_DEEP)
    return map_json(value, _json_leaf)


def _json_leaf(value: Any) -> Any:
    if odd_number(value):
        raise ValueError(NO_JSON_NUMBER)
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"{type(value).__name__} is no JSON value")
