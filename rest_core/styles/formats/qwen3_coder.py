"""qwen3_coder (vLLM's name): calls as XML; Qwen3-Coder, Qwen 3.5 and later.

    <tool_call>
    <function=get_weather>
    <parameter=city>
    Oslo
    </parameter>
    </function>
    </tool_call>

A value is text between two line breaks, of the type that the tool's schema declares; without a schema it is a string.
A value ends at the next </parameter>. A <function=…> without <tool_call> around it is read as well; it is not well
formed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from rest_core.call_json import CallSpans, Malformed, Span, dumped, object_at, scan_object
from rest_core.records import Tool, ToolCall
from rest_core.response import Block, Dialect, Kind, Response
from rest_core.styles.formats.parts import Parts, made_response, think_blocks, thought
from rest_core.styles.formats.python_literals import read_literal

_THINK = re.compile(r"<(/?)think>")
_TAG = re.compile(r"</?tool_call>|</?think>|<function=([^<>\n]*+)>|</function>|<parameter=([^<>\n]*+)>|</parameter>")
_STRINGS = {"string", "str", "enum", "text", "varchar", "char"}
_NO_VALUE = re.compile(r"null|None")
_INTEGER = re.compile(r"[+-]?[0-9]{1,300}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,300}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")


class Qwen3Coder:
    dialect = Dialect("qwen3_coder", re.compile(r"</?tool_call>|<function="))

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        parts = Parts()
        position = think_blocks(text, _THINK, parts)
        reader = _Reader(text, position, parts, {tool.name: tool for tool in tools})
        reader.read()
        return made_response(text, parts, self.dialect)

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        blocks = "\n".join(_written(call) for call in calls)
        return thought(think) + "\n\n".join(part for part in (response, blocks) if part)


class _Reader:
    """Reads the tags of a text from left to right, each of them once."""

    def __init__(self, text: str, position: int, parts: Parts, tools: dict[str, Tool]) -> None:
        self._text, self._parts, self._tools = text, parts, tools
        self._tags = list(_TAG.finditer(text, position))
        self._next = 0  # in the list of tags

    def read(self) -> None:
        while (tag := self._take()) is not None:
            if tag[0] == "<tool_call>":
                self._read_block(tag)
            elif tag[1] is not None:
                self._parts.problems.append("a function without <tool_call> around it")
                end = self._read_function(tag)
                self._add(Span(tag.start(), tag.start()), end, Span(end, end))
            else:
                self._parts.stray.append(tag[0])

    def _take(self) -> re.Match[str] | None:
        if self._next == len(self._tags):
            return None
        self._next += 1
        return self._tags[self._next - 1]

    def _read_block(self, opening: re.Match[str]) -> None:
        """A <tool_call> block: one function, and nothing else but white space."""
        open_tag = Span(*opening.span())
        tag = self._take()
        if tag is None or tag[1] is None:
            self._parts.stray.append(opening[0])
            self._next -= tag is not None
            return
        self._reject(open_tag.end, tag.start())
        end = self._read_function(tag)
        closing = self._take()
        if closing is not None and closing[0] == "</tool_call>":
            self._reject(end, closing.start())
            self._add(open_tag, closing.start(), Span(*closing.span()))
            return
        self._next -= closing is not None
        self._parts.problems.append("a <tool_call> that is not closed")
        self._add(open_tag, end, Span(end, end))

    def _add(self, open_tag: Span, end: int, close_tag: Span) -> None:
        self._parts.blocks.append(Block(Kind.TOOL_CALL, open_tag, Span(open_tag.end, end), close_tag))

    def _reject(self, start: int, end: int) -> None:
        if self._text[start:end].strip():
            self._parts.rejected.append(Span(start, end))

    def _read_function(self, opening: re.Match[str]) -> int:
        """The call of a <function=…>; returns where it ends. One that cannot be read is rejected."""
        name, start = opening[1].strip(), opening.start()
        values: dict[str, str] = {}
        place = begin = end = opening.end()
        junk = not name
        while (tag := self._take()) is not None and tag[2] is not None:
            junk |= bool(self._text[place : tag.start()].strip()) or tag[2].strip() in values
            begin = tag.start() if not values else begin
            closing = self._closing_parameter()
            if closing is None:
                self._parts.rejected.append(Span(start, len(self._text)))
                return len(self._text)
            values[tag[2].strip()] = self._text[tag.end() : closing.start()]
            place = end = closing.end()
        if tag is None or tag[0] != "</function>":
            self._next -= tag is not None
            place = len(self._text) if tag is None else tag.start()
            self._parts.rejected.append(Span(start, place))
            return place
        if junk or self._text[place : tag.start()].strip():
            self._parts.rejected.append(Span(start, tag.end()))
            return tag.end()
        spans = CallSpans(
            whole=Span(start, tag.end()), name=_inner(opening), arguments=Span(begin, end), key="parameters"
        )
        self._parts.calls.append((ToolCall(name, _typed(values, self._tools.get(name))), spans))
        return tag.end()

    def _closing_parameter(self) -> re.Match[str] | None:
        """The next </parameter>; tags before it are part of the value."""
        while (tag := self._take()) is not None:
            if tag[0] == "</parameter>":
                return tag
        return None


def _inner(opening: re.Match[str]) -> Span:
    """Where the name stands, without white space around it."""
    left = len(opening[1]) - len(opening[1].lstrip())
    return Span(opening.start(1) + left, opening.start(1) + left + len(opening[1].strip()))


def _typed(values: dict[str, str], tool: Tool | None) -> dict[str, Any]:
    properties = tool.parameters.get("properties", {}) if tool else {}
    return {name: _value(_unwrapped(text), properties.get(name)) for name, text in values.items()}


def _unwrapped(text: str) -> str:
    """A value without the line breaks that stand around it."""
    return text.removeprefix("\n").removesuffix("\n")


def _value(text: str, schema: Any) -> Any:
    """The value of a text, of the first declared type that it can have; the text itself where there is none."""
    types = set(_types(schema))
    if not types or types <= _STRINGS:
        return text
    plain = text.strip()
    if _NO_VALUE.fullmatch(plain):
        return None
    if any(name.startswith(("bool", "binary")) for name in types) and plain.lower() in ("true", "false"):
        return plain.lower() == "true"
    if any(name.startswith(("int", "num", "float", "double", "long", "short")) for name in types):
        if _INTEGER.fullmatch(plain):
            return int(plain)
        if _NUMBER.fullmatch(plain) and abs(float(plain)) != float("inf"):
            return float(plain)
    if types - _STRINGS and plain[:1] in ("{", "[", '"', "("):
        found = _container(plain)
        if found is not _NOTHING:
            return found
    return text


_NOTHING = object()


def _container(text: str) -> Any:
    """A list or an object in JSON or in Python's notation; `_NOTHING` where it is neither."""
    wrapped = f'{{"value": {text}}}'
    try:
        end, members = scan_object(wrapped, 0, len(wrapped))
        found = object_at(wrapped, Span(0, end)) if end == len(wrapped) and len(members) == 1 else None
        if found is not None:
            return found["value"]
    except Malformed:
        pass
    try:
        value, end = read_literal(text, 0)
    except Malformed:
        return _NOTHING
    return value if end == len(text) else _NOTHING


def _types(schema: Any) -> Iterator[str]:
    """The names of the types that a schema allows; none where it does not say."""
    if not isinstance(schema, dict):
        return
    declared = schema.get("type")
    for name in declared if isinstance(declared, list) else [declared]:
        if isinstance(name, str):
            yield name.split(",")[0].strip().lower()  # "str, optional" in ToolRL's data
    for key in ("anyOf", "oneOf"):
        for option in schema.get(key) or ():
            if isinstance(option, dict) and isinstance(option.get("type"), str):
                yield option["type"].lower()


def _written(call: ToolCall) -> str:
    lines = ["<tool_call>", f"<function={call.name}>"]
    for name, value in call.arguments.items():
        lines += [f"<parameter={name}>", value if isinstance(value, str) else dumped(value), "</parameter>"]
    return "\n".join([*lines, "</function>", "</tool_call>"])
