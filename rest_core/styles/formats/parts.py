"""Shared by the formats of model families: from the parts that a parser has found to a `Response`.

A family's response is: thoughts, then words, then calls, each of them optional. In a `Response` the words are blocks of
the kind RESPONSE with empty tags, so that regions and rewards read them as they read the project's own format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rest_core.records import Tool, ToolCall
from rest_core.response import Block, CallSpans, Dialect, Kind, Response, Span


class Format(Protocol):
    """How a response is written. Both directions: `parse(write(…))` gives back what was written."""

    dialect: Dialect

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        """Read one response. Never raises, whatever the text; linear time.

        Args:
            tools: those that may be called, for formats whose values have no types of their own.
        """
        ...

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        """The text of a response; thoughts and words may be None, calls empty."""
        ...


@dataclass
class Parts:
    """The parts that a parser has found in a text, in its order."""

    blocks: list[Block] = field(default_factory=list)  # thoughts and calls, disjoint
    calls: list[tuple[ToolCall, CallSpans]] = field(default_factory=list)
    rejected: list[Span] = field(default_factory=list)  # inside of call blocks
    stray: list[str] = field(default_factory=list)  # tags that open or close nothing
    problems: list[str] = field(default_factory=list)


def made_response(text: str, parts: Parts, dialect: Dialect, separators: str = "") -> Response:
    """The response of these parts; text between them is words.

    `tags` name its parts, calls in a row as one: the format rules of rewards compare them with the reference's.
    Thoughts in their place are left out of them: whether a family's model thinks is a setting of its chat template.

    Args:
        separators: characters that may stand between calls beside white space.
    """
    blocks = _with_words(text, parts.blocks, separators)
    words = [text[b.content.start : b.content.end] for b in blocks if b.kind is Kind.RESPONSE]
    thoughts = [text[b.content.start : b.content.end].strip() for b in blocks if b.kind is Kind.THINK]
    return Response(
        text=text,
        calls=tuple([call for call, _ in parts.calls]),
        call_spans=tuple([spans for _, spans in parts.calls]),
        blocks=tuple(blocks),
        think=thoughts[0] if thoughts else None,
        response="\n".join(words) if words else None,
        rejected=tuple(parts.rejected),
        tags=(*_tags(blocks), *parts.stray),
        problems=(*parts.problems, *_problems(blocks, parts)),
        dialect=dialect,
    )


def thought(think: str | None) -> str:
    """A think block and the line breaks behind it, as Qwen's templates write it; nothing without thoughts."""
    return "" if think is None else f"<think>\n{think}\n</think>\n\n"


def think_blocks(text: str, tags: re.Pattern[str], parts: Parts) -> int:
    """Read thoughts at the beginning of the text; returns where they end.

    Args:
        tags: matches the tags; group 1 is the slash of a closing one.
    """
    opening = tags.match(text, len(text) - len(text.lstrip()))
    if opening is None or opening[1]:
        return 0
    closing = next((tag for tag in tags.finditer(text, opening.end()) if tag[1]), None)
    if closing is None:
        return 0
    parts.blocks.append(
        Block(Kind.THINK, Span(*opening.span()), Span(opening.end(), closing.start()), Span(*closing.span()))
    )
    return closing.end()


def _with_words(text: str, blocks: Sequence[Block], separators: str) -> list[Block]:
    made: list[Block] = []
    place = 0
    for block in [*blocks, None]:
        end = len(text) if block is None else block.open_tag.start
        found = _stripped(text, place, end, separators)
        if found is not None:
            before, behind = Span(found.start, found.start), Span(found.end, found.end)
            made.append(Block(Kind.RESPONSE, before, found, behind))
        if block is not None:
            made.append(block)
            place = block.close_tag.end
    return made


def _stripped(text: str, start: int, end: int, separators: str) -> Span | None:
    """The span without white space around it; None where nothing but that and separators is left."""
    piece = text[start:end]
    left = len(piece) - len(piece.lstrip())
    words = piece.strip()
    if not words or not words.translate(dict.fromkeys(map(ord, separators))).strip():
        return None
    return Span(start + left, start + left + len(words))


def _tags(blocks: Sequence[Block]) -> list[str]:
    tags: list[str] = []
    last: Kind | None = None
    for number, block in enumerate(blocks):
        if block.kind is not last and not (block.kind is Kind.THINK and number == 0):
            tags += [f"<{block.kind.value}>", f"</{block.kind.value}>"]
        last = block.kind
    return tags


def _problems(blocks: Sequence[Block], parts: Parts) -> list[str]:
    kinds = [block.kind for block in blocks]
    problems = []
    if parts.stray:
        problems.append("a tag that is not closed, or not opened")
    if Kind.THINK in kinds[1:]:
        problems.append("thoughts that are not at the beginning, or more than once")
    calls = [number for number, kind in enumerate(kinds) if kind is Kind.TOOL_CALL]
    if calls and Kind.RESPONSE in kinds[calls[0] :]:
        problems.append("words behind the calls")
    if not calls and Kind.RESPONSE not in kinds:
        problems.append("neither words nor a call")
    if parts.rejected:
        problems.append(f"{len(parts.rejected)} piece(s) that cannot be read as a call")
    return problems
