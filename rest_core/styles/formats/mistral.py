"""mistral (vLLM's name): calls behind [TOOL_CALLS].

    [TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}, …]       before v11
    [TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]…          from v11 on; [ARGS] may be missing

A key "id", and [CALL_ID] with an id before [ARGS], are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rest_core.call_json import CallSpans, Malformed, Span, as_call, json_call, object_at, scan_object, skip_space
from rest_core.records import Tool, ToolCall
from rest_core.response import Block, Dialect, Kind, Response
from rest_core.styles.formats.parts import Parts, made_response, think_blocks

_MARK = "[TOOL_CALLS]"
_SQUARE, _ANGLED = re.compile(r"\[(/?)THINK\]"), re.compile(r"<(/?)think>")
_HEAD = re.compile(r"\s*+([^\s\[\]{}\"']++)\s*+(?:\[CALL_ID\][^\[{]*+)?(?:\[ARGS\])?\s*+(?=\{)")
_PIECE_END = re.compile(r"\n|\[TOOL_CALLS\]")
_FURTHER_KEYS = frozenset({"id", "type"})


class Mistral:
    dialect = Dialect("mistral", re.compile(r"\[TOOL_CALLS\]"))

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        parts = Parts()
        position = _thoughts(text, parts)
        while (mark := text.find(_MARK, position)) >= 0:
            start = mark + len(_MARK)
            head = _HEAD.match(text, start)
            end = _read_list(text, start, parts) if head is None else _read_named(text, head, parts)
            parts.blocks.append(Block(Kind.TOOL_CALL, Span(mark, start), Span(start, end), Span(end, end)))
            position = end
        return made_response(text, parts, self.dialect)

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        objects = ", ".join(json_call(call, "arguments") for call in calls)
        written = f"{_MARK}[{objects}]" if calls else ""
        return ("" if think is None else f"[THINK]{think}[/THINK]") + (response or "") + written


def _thoughts(text: str, parts: Parts) -> int:
    position = think_blocks(text, _SQUARE if text.lstrip().startswith("[") else _ANGLED, parts)
    parts.stray += [tag[0] for tags in (_SQUARE, _ANGLED) for tag in tags.finditer(text, position)]
    return position


def _read_named(text: str, head: re.Match[str], parts: Parts) -> int:
    """Read `name[ARGS]{…}`; returns where it ends."""
    start = head.start(1)
    try:
        end, _ = scan_object(text, head.end(), len(text))
    except Malformed as error:
        return _rejected(text, start, error.place, parts)
    span = Span(head.end(), end)
    arguments = object_at(text, span)
    if arguments is None:
        parts.rejected.append(Span(start, end))
    else:
        spans = CallSpans(whole=Span(start, end), name=Span(*head.span(1)), arguments=span, key="arguments")
        parts.calls.append((ToolCall(head[1], arguments), spans))
    return end


def _read_list(text: str, start: int, parts: Parts) -> int:
    """Read `[{…}, {…}]`, or one object without brackets; returns where it ends."""
    place = skip_space(text, start)
    listed = text.startswith("[", place) and not text.startswith(_MARK, place)
    place = skip_space(text, place + 1) if listed else place
    while text.startswith("{", place):
        try:
            end, members = scan_object(text, place, len(text))
        except Malformed as error:
            return _rejected(text, place, error.place, parts)
        call = as_call(text, place, end, members, _FURTHER_KEYS)
        if call is None:
            parts.rejected.append(Span(place, end))
        else:
            parts.calls.append(call)
        place = skip_space(text, end)
        if not listed:
            return end
        if text.startswith("]", place):
            return place + 1
        if not text.startswith(",", place):
            break
        place = skip_space(text, place + 1)
    return _rejected(text, place, place, parts)


def _rejected(text: str, start: int, place: int, parts: Parts) -> int:
    """A piece from `start` that failed at `place`: it ends with its line, or at the next mark; returns where."""
    found = _PIECE_END.search(text, place)
    end = found.start() if found else len(text)
    if end > start:
        parts.rejected.append(Span(start, end))
    else:
        parts.problems.append("a mark of calls without a call")
    return end
