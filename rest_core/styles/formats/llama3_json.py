"""llama3_json (vLLM's name): bare JSON objects; Llama 3.1, 3.2 and 3.3.

    {"name": "get_weather", "parameters": {"city": "Oslo"}}

perhaps behind <|python_tag|>; several calls are separated by semicolons. "arguments" is read for "parameters", and a
key "type" is ignored, which these models often write. A piece counts as a call that cannot be read where it begins as
one, with such a key; other braces are words.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rest_core.call_json import Malformed, as_call, json_call, scan_object
from rest_core.records import Tool, ToolCall
from rest_core.response import Block, Dialect, Kind, Response, Span
from rest_core.styles.formats.parts import Parts, made_response, think_blocks, thought

_MARK = "<|python_tag|>"
_THINK = re.compile(r"<(/?)think>")
_CALL_START = re.compile(r'\{\s*"(?:name|type|function|parameters|arguments|id)"\s*:')
_PIECE_END = re.compile(rf"\n|{_CALL_START.pattern}")
_FURTHER_KEYS = frozenset({"id", "type"})


class Llama3Json:
    dialect = Dialect("llama3_json", re.compile(rf"{re.escape(_MARK)}|{_CALL_START.pattern}"))

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        parts = Parts()
        position = think_blocks(text, _THINK, parts)
        parts.stray += [tag[0] for tag in _THINK.finditer(text, position)]
        while (start := text.find("{", position)) >= 0:
            call, is_object = None, False
            try:
                end, members = scan_object(text, start, len(text))
                call, is_object = as_call(text, start, end, members, _FURTHER_KEYS), True
            except Malformed as error:
                end = max(error.place, start + 1)  # resume where it failed, so that time stays linear
            if call is not None:
                parts.calls.append(call)
            elif _CALL_START.match(text, start):
                end = end if is_object else _line_end(text, end)
                parts.rejected.append(Span(start, end))
            if call is not None or (parts.rejected and parts.rejected[-1].start == start):
                parts.blocks.append(_block(text, start, end))
            position = end
        return made_response(text, parts, self.dialect, separators=";,[]")

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        # The template has no place for words beside calls.
        return thought(think) + ("; ".join(json_call(call, "parameters") for call in calls) or response or "")


def _block(text: str, start: int, end: int) -> Block:
    mark = start - len(_MARK)
    open_tag = Span(mark, start) if mark >= 0 and text.startswith(_MARK, mark) else Span(start, start)
    return Block(Kind.TOOL_CALL, open_tag, Span(start, end), Span(end, end))


def _line_end(text: str, place: int) -> int:
    """Where a piece ends that cannot be read: at the end of its line, or where the next call begins."""
    following = _PIECE_END.search(text, place)
    return following.start() if following else len(text)
