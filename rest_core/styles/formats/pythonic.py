"""pythonic (vLLM's name): a list of calls as Python writes them; Llama 3.2 and 4, LFM2, ToolACE.

    [get_weather(city='Oslo'), get_time(zone="CET", exact=True)]

The list is the whole response (thoughts aside), or stands between marks: <|python_start|> … <|python_end|> (Llama 4),
<|tool_call_start|> … <|tool_call_end|> (LFM2). Arguments have names; values are literals. A call that cannot be read
costs itself alone: reading continues at the next ", name(".
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rest_core.call_json import CallSpans, Malformed, Span, dumped, skip_space
from rest_core.records import Tool, ToolCall
from rest_core.response import Block, Dialect, Kind, Response
from rest_core.styles.formats.parts import Parts, made_response, think_blocks, thought
from rest_core.styles.formats.python_literals import read_literal

_THINK = re.compile(r"<(/?)think>")
_OPENING = re.compile(r"<\|(?:python_start|python_tag|tool_call_start)\|>")
_CLOSING = re.compile(r"\s*<\|(?:python_end|tool_call_end)\|>")
_NAME = r"[^\W\d][\w.\-/:]*+"
_LIST = re.compile(rf"\s*+\[(?=\s*+{_NAME}\s*+\()")
_CALL = re.compile(rf"\s*+({_NAME})\s*+\(")
_NEXT = re.compile(rf"[,\]]\s*+(?={_NAME}\s*+\()|\]\s*+\Z|\]\s*+(?=<\|(?:python_end|tool_call_end)\|>)")
_KEY = re.compile(r"\s*+([^\W\d]\w*+)\s*+=(?!=)")


class Pythonic:
    dialect = Dialect("pythonic", re.compile(rf"{_OPENING.pattern}|\[\s*+{_NAME}\s*+\("))

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        parts = Parts()
        position = think_blocks(text, _THINK, parts)
        parts.stray += [tag[0] for tag in _THINK.finditer(text, position)]
        opening: re.Match[str] | None = None
        begun = _LIST.match(text, position)  # without a mark: the whole response
        while True:
            if begun is not None:
                position = self._read_list(text, opening, begun, parts)
            elif opening is not None:
                parts.stray.append(opening[0])
                position = opening.end()
            opening = _OPENING.search(text, position)
            if opening is None:
                return made_response(text, parts, self.dialect)
            begun = _LIST.match(text, opening.end())

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        written = ", ".join(f"{call.name}({_arguments(call.arguments)})" for call in calls)
        return thought(think) + (f"[{written}]" if calls else response or "")

    def _read_list(self, text: str, opening: re.Match[str] | None, begun: re.Match[str], parts: Parts) -> int:
        """Read the list whose bracket ends `begun`; returns where its block ends."""
        bracket = begun.end() - 1
        start = bracket if opening is None else opening.start()
        position = begun.end()
        while True:
            try:
                call, spans = _read_call(text, position)
                parts.calls.append((call, spans))
                position = skip_space(text, spans.whole.end)
                if text.startswith("]", position):
                    break
                if text.startswith(",", position):
                    position += 1
                    continue
                begin, place = position, position
            except Malformed as error:
                begin, place = skip_space(text, position), error.place
            found = _NEXT.search(text, place)
            if found is None or found[0][0] == "]":
                end = len(text) if found is None else found.start()
                if end > begin:
                    parts.rejected.append(Span(begin, end))
                position = end
                break
            parts.rejected.append(Span(begin, found.start()))
            position = found.start() + 1
        return self._close(text, Span(start, bracket + 1), position, parts)

    def _close(self, text: str, open_tag: Span, end: int, parts: Parts) -> int:
        """Add the block whose content ends at `end`, where its bracket should stand."""
        place = end
        if text.startswith("]", end):
            closing = _CLOSING.match(text, end + 1)
            place = closing.end() if closing else end + 1
        else:
            parts.problems.append("a list of calls that is not closed")
        parts.blocks.append(Block(Kind.TOOL_CALL, open_tag, Span(open_tag.end, end), Span(end, place)))
        return place


def _read_call(text: str, position: int) -> tuple[ToolCall, CallSpans]:
    """The call at `position`; raises `Malformed`."""
    head = _CALL.match(text, position)
    if head is None:
        raise Malformed(skip_space(text, position))
    arguments: dict[str, Any] = {}
    place = skip_space(text, head.end())
    begin, end = place, place
    while not text.startswith(")", place):
        key = _KEY.match(text, place)
        if key is None or key[1] in arguments:
            raise Malformed(place)
        arguments[key[1]], end = read_literal(text, key.end())
        place = skip_space(text, end)
        if text.startswith(",", place):
            place = skip_space(text, place + 1)
        elif not text.startswith(")", place):
            raise Malformed(place)
    spans = CallSpans(
        whole=Span(head.start(1), place + 1), name=Span(*head.span(1)), arguments=Span(begin, end), key="arguments"
    )
    return ToolCall(head[1], arguments), spans


def _arguments(arguments: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_written(value)}" for name, value in arguments.items())


def _written(value: Any) -> str:
    """A value as a Python literal; strings in double quotes, as Llama's model card has them."""
    return dumped(value) if isinstance(value, str) else repr(value)
