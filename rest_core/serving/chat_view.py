"""What a client of a chat API sees of a response in the project's own format: reasoning, content and tool calls.

Every function reads a response from its beginning, complete or so far. What it shows of the beginning is a beginning of
what it shows of the whole, so that a stream may send the differences.
"""

from __future__ import annotations

import re

from rest_core.records import ToolCall
from rest_core.response import Kind, parse

THINK, END_THINK = "<think>", "</think>"
_RESPONSE_END = "</response>"
_VIEW_TAG = re.compile(r"<(tool_call|response)>")


def split_reasoning(text: str, *, final: bool, opened: bool = False) -> tuple[str, str | None]:
    """The reasoning, and what follows it; None as long as the reasoning goes on.

    Args:
        text: the response so far.
        final: whether nothing will follow.
        opened: whether the prompt has begun the reasoning.
    """
    if opened and not text.lstrip().startswith(THINK):
        inner = text
    else:
        begun = text.lstrip()
        if not begun.startswith(THINK):
            return "", None if not final and THINK.startswith(begun) else text
        inner = begun.removeprefix(THINK)
    thoughts, closed, rest = inner.partition(END_THINK)
    if closed:
        return thoughts.strip(), rest
    return (thoughts if final else without_begun_tag(thoughts, END_THINK)).strip(), None


def content_and_calls(text: str, *, final: bool) -> tuple[str, tuple[ToolCall, ...]]:
    """What the user is told, and the calls of closed blocks, in what follows the reasoning.

    Words outside of blocks are content where no block stands before them. Of a response that goes on, nothing is shown
    from the first block on that has a piece which cannot be read as a call: what follows may show that the block's end
    stands inside of a string.
    """
    read = parse(text)
    known = len(text)
    if read.rejected and not final:
        piece = read.rejected[0].start
        holding = (one.open_tag.start for one in read.blocks if one.content.start <= piece < one.close_tag.start)
        known = next(holding, piece)
    calls = tuple(call for call, at in zip(read.calls, read.call_spans, strict=True) if at.whole.end <= known)
    told, end = [], 0
    for block in read.blocks:
        if end == 0:
            told.append(text[: block.open_tag.start])
        if block.open_tag.start >= known:
            return _joined(told), calls
        if block.kind is Kind.RESPONSE:
            told.append(text[block.content.start : block.content.end])
        end = block.close_tag.end
    tail = text[end:]
    tag = _VIEW_TAG.search(tail)
    if end == 0:
        words = tail if final else without_begun_tag(tail, "<tool_call>", "<response>")
        told.append(words if tag is None else tail[: tag.start()])
    if tag is not None and tag[1] == Kind.RESPONSE.value:  # it is not closed yet
        told.append(tail[tag.end() :] if final else without_begun_tag(tail[tag.end() :], _RESPONSE_END))
    return _joined(told), calls


def _joined(parts: list[str]) -> str:
    return "\n".join(part.strip() for part in parts if part.strip())


def without_begun_tag(text: str, *tags: str) -> str:
    """The text without the longest end of it that may become one of the tags."""
    longest = max(
        (size for tag in tags for size in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:size])),
        default=0,
    )
    return text[: len(text) - longest]
