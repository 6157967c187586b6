"""Calls that stand in an assistant's text, beside its words to the user.

Data from other projects has calls as text in the notation of some model: `<tool_call>{…}</tool_call>` (Hermes, Qwen),
`<TOOLCALL>[…]</TOOLCALL>` (Nemotron), `[TOOL_CALLS][…]` (Mistral), `<functioncall> {…}` (Glaive), a bare JSON object
that calls one of the tools, and Python's `[f(x=1)]` (ToolACE). Trained as text they would teach the opposite of what
is meant: text that looks like a call and cannot be read as a whole is refused.

The time is linear in the length of the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rest_core.data.fields import NO_JSON_NUMBER, TOO_DEEP, Unreadable, mapping, odd_number, shown, too_deep
from rest_core.data.python_calls import NotCalls, literal, read_calls
from rest_core.data.tools import same_name
from rest_core.records import Tool, ToolCall

_OPEN = re.compile(
    r"<(?:\w{1,20}+:)?(?:tool_?calls?|tool_use|function_?calls?)>|<(?:\w{1,20}+:)?invoke |<function=|<\|python_tag\|>"
    r"|<\|tool_calls?\|>|<\|tool_call_start\|>|<\|tool_calls?_(?:section_)?begin\|>|<｜tool▁calls?▁begin｜>"
    r"|\[TOOL_CALLS\]|functools\[|^Action[ _]Input:|^Action: ?```json|✿FUNCTION✿|<\|channel\|>commentary to=",
    re.IGNORECASE | re.MULTILINE,
)
_NEEDED = ("<", "[", "(", "{", "✿")  # one of them is in every call, whatever the notation
_CLOSE = re.compile(
    r"</(?:\w{1,20}+:)?(?:tool_?calls?|tool_use|function_?calls?)>|<\|/tool_calls?\|>|<\|tool_call_end\|>|\[/TOOL_CALLS\]|<\|endoftext\|>"
    r"|<\|eo[tm]_id\|>|<\|im_end\|>|</s>",
    re.IGNORECASE,
)
_CALLED = re.compile(r'"(?:name|function|tool|tool_name|action)"\s*+:\s*+"([^"\\\n]{1,200}+)"')
_HAS_ARGUMENTS = re.compile(r'"(?:arguments|parameters|args|input|action_input)"\s*+:')
_ARGUMENT_KEYS = ("arguments", "parameters", "args", "input")  # OpenAI's, ours, LangChain's, Anthropic's
_BESIDE = frozenset({"name", "function", "type", "id", "call_id", "tool_call_id", "index"})  # further keys of calls
_GLAIVE = re.compile(r"""\s*+\{\s*+"name"\s*+:\s*+"([^"\\]++)"\s*+,\s*+"arguments"\s*+:\s*+'(.*)'\s*\}\s*""", re.DOTALL)
_FENCE = re.compile(r"```(?:json|python|tool_code|tool_call)?[ \t]*\n?")
_BETWEEN = re.compile(r"[\s,;]*+")
_MAX_NAME = 200  # characters of a tool's name; published ones stay below 100


@dataclass(frozen=True)
class Parts:
    """An assistant's text for the user, and its calls. `no_call`: it says explicitly that no call is right ("[]")."""

    text: str
    calls: tuple[ToolCall, ...] = ()
    no_call: bool = False


def split(text: str, tools: Sequence[Tool]) -> Parts:
    """`text` taken apart into text for the user and calls.

    Raises:
        NotCalls: it has something that looks like a call and cannot be read as one.
    """
    text = text.strip()
    if not any(mark in text for mark in _NEEDED):
        return Parts(text)
    if text in ("[]", "```json\n[]\n```"):
        return Parts("", no_call=True)
    if mark := _OPEN.search(text):
        return _marked(text, mark.start())
    if text.startswith("[") and text.endswith("]"):
        try:
            return Parts("", tuple(read_calls(text, tools)))
        except NotCalls:
            pass  # perhaps JSON, perhaps text in brackets
    if (alone := _calls_alone(text, tools)) is not None:
        return Parts("", tuple(_calls(alone)))
    names = _first_parts(tools)
    if (start := _python_call(text, names)) is not None:
        tail = text[start:].removesuffix("```").rstrip()
        calls = read_calls(tail if tail.startswith("[") else f"[{tail}]", tools)
        return Parts(_unfenced(text[:start]), tuple(calls))
    if (start := _json_call(text, tools)) is not None:
        calls, end = _json_calls(text, start)
        if not calls or _unfenced(text[end:]):
            raise NotCalls(f"{text[start : start + 60]!r} is not a call alone")
        return Parts(_unfenced(text[:start]), tuple(calls))
    if "```tool_c" in text:  # tool_code, tool_call
        raise NotCalls(f"{text[:60]!r} is not a call alone")
    return Parts(text)


def calls_of(value: Any, field: str) -> list[ToolCall]:
    """The calls of a field that holds nothing else: an object, a list of them, or either as text; [] says none.

    Raises:
        Unreadable: it holds anything else.
    """
    if value is None:
        raise Unreadable("field missing", field)
    try:
        if not isinstance(value, str):
            return _calls(value)
        if _OPEN.match(value.strip()):
            return list(_marked(value.strip(), 0).calls)
        calls, end = _json_calls(value, 0)
        return calls if calls and not value[end:].strip() else _calls(_lenient(value))
    except NotCalls as error:
        raise error.unreadable(field) from None


def call_of(fields: Mapping[str, Any], field: str) -> ToolCall:
    """A call of {"name", "arguments"}, or of {"function": …} around that; `_ARGUMENT_KEYS` may stand for "arguments".

    Raises:
        Unreadable: it has no name, the arguments are no object, or they stand where they are not looked for.
    """
    inner = fields.get("function")
    if isinstance(inner, dict) or (inner is not None and not isinstance(fields.get("name"), str)):
        field = f"{field}.function"
        fields = mapping(inner, field)
    name = fields.get("name")
    if name is None:
        raise Unreadable("field missing", f"{field}.name")
    if not isinstance(name, str) or not name.strip():
        raise Unreadable("call without a name", f"{field}.name")
    given = [key for key in _ARGUMENT_KEYS if key in fields]
    key = next((key for key in given if fields[key]), given[0] if given else _ARGUMENT_KEYS[0])
    if not given and (others := [other for other in fields if other not in _BESIDE and fields[other] is not None]):
        raise Unreadable("call cannot be read", field, f"no {key!r}, but {shown(others[0], 60)!r}")
    return ToolCall(same_name(name), arguments_of(fields.get(key), f"{field}.{key}"))


def arguments_of(value: Any, field: str) -> dict[str, Any]:
    """A call's arguments. Null, an empty text and an empty list are no arguments; text is JSON, or Python's notation.

    Raises:
        Unreadable: they are no object.
    """
    if isinstance(value, str) and value.strip().startswith("{"):
        try:
            value = mapping(value, field)
        except Unreadable as error:
            try:
                value = mapping(literal(value), field)
            except NotCalls:
                raise error from None  # the message about JSON says more
    if isinstance(value, str) and value.strip() in ("", "null", '""', "[]"):
        return {}
    arguments = {} if value is None or value == [] else mapping(value, field)
    if odd_number(arguments):
        raise Unreadable(NO_JSON_NUMBER, field)
    return arguments


def listed(text: str) -> list[Any]:
    """The JSON values that a text begins with, one after the other, or one in Python's notation; lists taken apart.

    Raises:
        NotCalls: the text is anything else.
    """
    values, end = json_values(text, 0)
    if not values or text[end:].strip():
        values = [_lenient(text)]
    return [inner for value in values for inner in (value if isinstance(value, list) else [value])]


def _marked(text: str, start: int) -> Parts:
    outside = [text[:start]]
    calls: list[ToolCall] = []
    mark = _OPEN.match(text, start)
    while mark:
        # "functools[" opens the list itself.
        found, end = _json_calls(text, mark.end() - mark[0].endswith("["))
        if not found:
            closing = _CLOSE.search(text, mark.end())
            end = closing.start() if closing else len(text)
            found = _calls(_lenient(text[mark.end() : end]))
        calls += found
        closing = _CLOSE.match(text, _next(text, end))
        end = closing.end() if closing else end
        mark = _OPEN.search(text, end)
        between = text[end : mark.start() if mark else len(text)]
        if between.strip() and not closing:
            raise NotCalls(f"{between.strip()[:60]!r} behind a call that is not closed")
        outside.append(between)
    rest = "\n".join(part for piece in outside if (part := _CLOSE.sub("", piece).strip()))
    return Parts(rest, tuple(calls), no_call=not calls)


def _calls_alone(text: str, tools: Sequence[Tool]) -> list[Any] | None:
    """The entries of a text that is nothing but calls in JSON or Python's notation of it, None where it is not.

    An object is a call where it names a tool, or where arguments stand beside the name.
    """
    bare = _unfenced(text)
    if not bare.startswith(("{", "[")):
        return None
    try:
        entries = listed(bare)
    except NotCalls:
        return None
    names = {same_name(tool.name) for tool in tools}
    return entries if entries and all(_is_call(entry, names) for entry in entries) else None


def _is_call(entry: Any, names: Collection[str]) -> bool:
    if not isinstance(entry, dict):
        return False
    inner = entry.get("function")
    called = inner.get("name") if isinstance(inner, dict) else entry.get("name", inner)
    return isinstance(called, str) and (same_name(called) in names or any(key in entry for key in _ARGUMENT_KEYS[:2]))


def _json_calls(text: str, start: int) -> tuple[list[ToolCall], int]:
    values, end = json_values(text, start)
    return [call for value in values for call in _calls(value)], end


def json_values(text: str, start: int) -> tuple[list[Any], int]:
    """The JSON objects and lists from `start` on, and where they end.

    Raises:
        NotCalls: one is nested too deeply.
    """
    decoder = json.JSONDecoder()
    values: list[Any] = []
    end = start
    while True:
        place = _next(text, end)
        if place == len(text) or text[place] not in "{[":
            return values, end
        try:
            value, end = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            return values, end
        if too_deep(value):
            raise NotCalls(TOO_DEEP)
        values.append(value)


def _next(text: str, place: int) -> int:
    """The place of the next value or mark: behind blanks and separators."""
    match = _BETWEEN.match(text, place)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def _calls(value: Any) -> list[ToolCall]:
    entries = value if isinstance(value, list) else [value]
    try:
        return [call_of(mapping(entry, "call"), "call") for entry in entries]
    except Unreadable as error:
        raise NotCalls(f"{error.reason} at {error.field!r}") from None


def _lenient(text: str) -> Any:
    """A value in Python's notation; Glaive's calls, whose arguments are JSON in single quotes, are nearly that."""
    if match := _GLAIVE.fullmatch(text):
        return {"name": match[1], "arguments": match[2]}
    return literal(text)


def _first_parts(tools: Sequence[Tool]) -> frozenset[str]:
    """The tools' names up to their first bracket, as they stand before the bracket of a call."""
    return frozenset(same_name(tool.name.partition("(")[0]) for tool in tools)


def _python_call(text: str, names: frozenset[str]) -> int | None:
    """Where a call of a known tool in Python's notation begins: `[f(`, or `f(` where the text is nothing else."""
    whole = _unfenced(text)
    if whole.endswith(")") and same_name(whole[: whole.find("(")][:_MAX_NAME]) in names:
        return text.find(whole)
    start = text.find("[")
    while start >= 0:
        bracket = text.find("(", start, start + _MAX_NAME)
        if bracket >= 0 and same_name(text[start + 1 : bracket]) in names:
            return start
        start = text.find("[", start + 1)
    return None


def _json_call(text: str, tools: Sequence[Tool]) -> int | None:
    """Where JSON begins that calls a known tool."""
    if "{" not in text or not _HAS_ARGUMENTS.search(text):
        return None
    names = {same_name(tool.name) for tool in tools}
    if not any(same_name(match[1]) in names for match in _CALLED.finditer(text)):
        return None
    return min(place for place in (text.find("{"), text.find("[")) if place >= 0)


def _unfenced(text: str) -> str:
    return _FENCE.sub("", text).strip()
