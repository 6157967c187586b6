"""Hermes (vLLM's name): calls as JSON in <tool_call> blocks; Nous Hermes, Qwen 2.5, Qwen 3, SmolLM3 and others.

    <think>
    reasoning
    </think>

    words
    <tool_call>
    {"name": "get_weather", "arguments": {"city": "Oslo"}}
    </tool_call>
    <tool_call>
    …

A last block that nothing closes is read up to the end of the text, as vLLM does: its closing tag may be the token at
which a server stops. It is not well formed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from rest_core.call_json import json_call
from rest_core.records import Tool, ToolCall
from rest_core.response import Block, Dialect, Kind, Response, Span, read_block, scan
from rest_core.styles.formats.parts import Parts, made_response, thought

_TAG = re.compile(r"<(/?)(think|tool_call)>")
_OPENING = "<tool_call>"
_FURTHER_KEYS = frozenset({"id", "type"})


class Hermes:
    dialect = Dialect("hermes", re.compile(r"</?tool_call>"))

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        found = scan(text, _TAG, _FURTHER_KEYS)
        parts = Parts(found.blocks, found.calls, found.rejected, found.stray)
        if found.stray:
            _read_open_block(text, parts)
        if found.inner:
            parts.problems.append("a tag inside a block")
        if any(not text[b.content.start : b.content.end].strip() for b in parts.blocks if b.kind is Kind.TOOL_CALL):
            parts.problems.append("an empty block")
        return made_response(text, parts, self.dialect)

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        blocks = (f"<tool_call>\n{json_call(call, 'arguments')}\n</tool_call>" for call in calls)
        return thought(think) + "\n".join(part for part in (response, *blocks) if part)


def _read_open_block(text: str, parts: Parts) -> None:
    """Take a last block that nothing closes, where it holds calls and nothing else."""
    start = text.rfind(_OPENING)
    closed = parts.blocks[-1].close_tag.end if parts.blocks else 0
    if start < closed:
        return
    content = start + len(_OPENING)
    block = read_block(text, content, _FURTHER_KEYS)
    if block.calls and not block.rejected:
        parts.calls += block.calls
        end = len(text)
        parts.blocks.append(Block(Kind.TOOL_CALL, Span(start, content), Span(content, end), Span(end, end)))
