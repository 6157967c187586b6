"""Responses in the project's own format: text in, typed spans and calls out.

A response is

    <think> reasoning </think>
    <tool_call>
    {"name": "get_weather", "parameters": {"city": "Oslo"}}
    {"name": …}
    </tool_call>
    <response> text for the user </response>

with at most one block of each kind, in this order, and at least a `<tool_call>` or a `<response>`. "arguments" is
accepted for "parameters". Rewards, token regions, evaluation and data validation all read a `Response`; the parsers of
other formats (`rest_core.styles.formats`) give the same type.

A tag inside a string of a call is a part of that string and ends no block.

The text may be anything: model output is hostile. `parse` never raises, and its time is linear in the length: the tag
scan and the JSON scan each pass over it once (a JSON scan that fails resumes where it failed, and at most
`MAX_LOOKAHEADS` of them look beyond a closing tag for nothing). Nesting deeper than `MAX_DEPTH` is refused, so that
readers of `.calls` may recurse.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from rest_core.call_json import MAX_DEPTH as MAX_DEPTH
from rest_core.call_json import CallSpans as CallSpans
from rest_core.call_json import Malformed, as_call, json_call, scan_object, skip_space
from rest_core.call_json import Span as Span
from rest_core.records import ToolCall

MAX_LOOKAHEADS = 16  # pieces of one text that pass over a closing tag, as in a string, and turn out to be no object


class Kind(Enum):
    """The three kinds of block; the values are the tag names."""

    THINK = "think"
    TOOL_CALL = "tool_call"
    RESPONSE = "response"


@dataclass(frozen=True)
class Dialect:
    """A way in which responses are written: the project's own, or that of a model family (`rest_core.styles.formats`).

    Args:
        call_mark: what begins or ends calls; found in a place where no call can stand, it makes that place suspicious.
    """

    name: str
    call_mark: re.Pattern[str]


TAGGED = Dialect("tagged", re.compile(r"</?tool_call>"))
"""The project's own format, described above."""

_ORDER = {Kind.THINK: 0, Kind.TOOL_CALL: 1, Kind.RESPONSE: 2}
_TAG = re.compile(r"<(/?)(think|tool_call|response)>")


@dataclass(frozen=True)
class Block:
    """A closed block: `open_tag` + content + `close_tag`, without a gap. In other dialects a tag may be empty."""

    kind: Kind
    open_tag: Span
    content: Span
    close_tag: Span


@dataclass(frozen=True)
class Response:
    """A parsed response. `calls[i]` stands at `call_spans[i]`; spans count characters of `text`."""

    text: str
    calls: tuple[ToolCall, ...]
    call_spans: tuple[CallSpans, ...]
    blocks: tuple[Block, ...]
    think: str | None  # content of the first think block, stripped
    response: str | None  # content of the first response block, stripped
    rejected: tuple[Span, ...]  # pieces of tool_call blocks that are no call
    tags: tuple[str, ...]  # every tag in order, those inside blocks and the stray ones included, those in strings not
    problems: tuple[str, ...]  # why it is not well formed, for people; empty when it is
    dialect: Dialect = TAGGED

    @property
    def well_formed(self) -> bool:
        """Exactly the format: closed blocks in order, once each, nothing around them, every call readable."""
        return not self.problems

    @property
    def outside(self) -> tuple[Span, ...]:
        """What stands between and around the blocks."""
        return tuple(_outside(self.text, self.blocks))


def parse(text: str) -> Response:
    """Read one response. Never raises, whatever the text; linear time."""
    found = scan(text)
    return Response(
        text=text,
        calls=tuple([call for call, _ in found.calls]),
        call_spans=tuple([spans for _, spans in found.calls]),
        blocks=tuple(found.blocks),
        think=_first_content(text, found.blocks, Kind.THINK),
        response=_first_content(text, found.blocks, Kind.RESPONSE),
        rejected=tuple(found.rejected),
        tags=tuple(found.tags),
        problems=tuple(_problems(text, found)),
    )


def read_calls(text: str) -> tuple[list[ToolCall], list[str]]:
    """The calls in `text` and the pieces that are none, as if it stood in a tool_call block."""
    block = read_block(text)
    return [call for call, _ in block.calls], [text[piece.start : piece.end] for piece in block.rejected]


def read_block(text: str, start: int = 0, ignored: frozenset[str] = frozenset()) -> CallBlock:
    """What stands from `start` to the end of the text, as if it were the content of a tool_call block."""
    block = _CallReader(text, [len(text)], ignored).block(start)
    assert block is not None  # the end of the text closes it
    return block


def render(*, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
    """The text of a response; `parse` reads it back. Calls are written one a line, with "parameters"."""
    parts = []
    if think is not None:
        parts.append(f"<think> {think} </think>")
    if calls:
        lines = (json_call(call, "parameters") for call in calls)
        parts.append("\n".join(["<tool_call>", *lines, "</tool_call>"]))
    if response is not None:
        parts.append(f"<response> {response} </response>")
    return "\n".join(parts)


def _first_content(text: str, blocks: Sequence[Block], kind: Kind) -> str | None:
    for block in blocks:
        if block.kind is kind:
            return text[block.content.start : block.content.end].strip()
    return None


@dataclass
class CallBlock:
    """What a tool_call block holds."""

    calls: list[tuple[ToolCall, CallSpans]] = field(default_factory=list)
    rejected: list[Span] = field(default_factory=list)
    objects: list[Span] = field(default_factory=list)  # JSON objects, calls or not
    close: int = 0  # where its closing tag starts


@dataclass
class Scanned:
    """What `scan` has found in a text."""

    blocks: list[Block] = field(default_factory=list)
    calls: list[tuple[ToolCall, CallSpans]] = field(default_factory=list)
    rejected: list[Span] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    stray: list[str] = field(default_factory=list)  # tags that open or close nothing
    inner: int = 0  # tags inside a block


def scan(text: str, tags: re.Pattern[str] | None = None, ignored: frozenset[str] = frozenset()) -> Scanned:
    """Closed blocks with their calls, and every tag.

    Args:
        tags: by default those of the format above; groups 1 and 2 are the slash of a closing tag and the kind of block.
        ignored: further keys that a call may have.

    A block runs from its opening tag to the next closing tag of its kind; other tags between are content (so a call
    inside a think block is thought about, not made). A tool_call block is read call by call, and a tag inside a JSON
    object there can only stand in a string. An opening tag that nothing closes opens nothing.
    """
    result = Scanned()
    found = list((tags or _TAG).finditer(text))
    index_of: dict[int, int] = {}  # of closing tags, by where they start
    closers: dict[Kind, list[int]] = {kind: [] for kind in Kind}
    for index, match in enumerate(found):
        if match[1]:
            index_of[match.start()] = index
            closers[Kind(match[2])].append(match.start())
    reader = _CallReader(text, closers[Kind.TOOL_CALL], ignored)
    index = 0
    while index < len(found):
        opening, kind = found[index], Kind(found[index][2])
        result.tags.append(opening[0])
        body: CallBlock | None = None
        if not opening[1]:
            body = reader.block(opening.end()) if kind is Kind.TOOL_CALL else _plain(closers[kind], opening.end())
        if body is None:
            result.stray.append(opening[0])
            index += 1
            continue
        last = index_of[body.close]
        inner = _unquoted(found[index + 1 : last], body.objects)
        result.tags += [match[0] for match in (*inner, found[last])]
        result.inner += len(inner)
        result.calls += body.calls
        result.rejected += body.rejected
        result.blocks.append(
            Block(
                kind=kind,
                open_tag=Span(*opening.span()),
                content=Span(opening.end(), body.close),
                close_tag=Span(*found[last].span()),
            )
        )
        index = last + 1
    return result


def _plain(closers: Sequence[int], start: int) -> CallBlock | None:
    """A block without calls whose content starts at `start`; None where nothing closes it."""
    nth = bisect_left(closers, start)
    return CallBlock(close=closers[nth]) if nth < len(closers) else None


def _unquoted(tags: Sequence[re.Match[str]], objects: Sequence[Span]) -> list[re.Match[str]]:
    """The tags that stand in none of the JSON objects; both ascend."""
    starts = [span.start for span in objects]
    left = []
    for tag in tags:
        nth = bisect_left(starts, tag.start()) - 1  # the last object that starts before the tag
        if nth < 0 or objects[nth].end <= tag.start():
            left.append(tag)
    return left


def _outside(text: str, blocks: Sequence[Block]) -> list[Span]:
    ends = [0, *[block.close_tag.end for block in blocks]]
    starts = [*[block.open_tag.start for block in blocks], len(text)]
    return [Span(start, end) for start, end in zip(ends, starts, strict=True) if end > start]


def _problems(text: str, found: Scanned) -> list[str]:
    """What is wrong with the format, for people."""
    kinds = [block.kind for block in found.blocks]
    problems = []
    if found.stray:
        problems.append("a tag that is not closed, or not opened")
    if found.inner:
        problems.append("a tag inside a block")
    # Tags that open or close nothing lie outside the blocks, too; they are counted above.
    if any(_TAG.sub("", text[gap.start : gap.end]).strip() for gap in _outside(text, found.blocks)):
        problems.append("text outside the blocks")
    if len(set(kinds)) != len(kinds):
        problems.append("a block that occurs more than once")
    elif kinds != sorted(kinds, key=_ORDER.__getitem__):
        problems.append("blocks out of order")
    if Kind.TOOL_CALL not in kinds and Kind.RESPONSE not in kinds:
        problems.append("neither a tool_call nor a response block")
    if any(not text[b.content.start : b.content.end].strip() for b in found.blocks):
        problems.append("an empty block")
    if found.rejected:
        problems.append(f"{len(found.rejected)} piece(s) of a tool_call block that cannot be read as a call")
    return problems


class _CallReader:
    """Reads the tool_call blocks of one text.

    Calls are JSON objects one after the other, white space between (one a line is the format; printed over several
    lines is read as well). A piece that cannot be read costs that piece alone: reading continues at the line behind the
    place where that showed (`_next_line`). A call that is cut off where the next call can be read as its value takes
    that along.

    Args:
        closers: where closing tags of tool_call start, ascending.
        ignored: further keys that a call may have.
    """

    def __init__(self, text: str, closers: Sequence[int], ignored: frozenset[str] = frozenset()) -> None:
        self._text, self._closers, self._ignored = text, closers, ignored
        self._lookaheads = MAX_LOOKAHEADS

    def block(self, start: int) -> CallBlock | None:
        """The block whose content starts at `start`; None where no tag outside its calls closes it."""
        text, closers = self._text, self._closers
        block = CallBlock()
        first = nth = bisect_left(closers, start)
        position = skip_space(text, start)
        while True:
            while nth < len(closers) and closers[nth] < position:  # in a string of the object that ended here
                nth += 1
            if nth == len(closers):
                self._lookaheads -= nth > first
                return None
            close = closers[nth]
            if position == close:
                block.close = close
                return block
            try:
                end, members = scan_object(text, position, len(text) if self._lookaheads > 0 else close)
            except Malformed as error:
                self._lookaheads -= error.place > close
                end = _next_line(text, position, min(error.place, close), close)
                block.rejected.append(Span(position, end))
                position = end
                continue
            call = as_call(text, position, end, members, self._ignored)
            if call is None:
                block.rejected.append(Span(position, end))
            else:
                block.calls.append(call)
            block.objects.append(Span(position, end))
            position = skip_space(text, end)


def _next_line(text: str, start: int, place: int, limit: int) -> int:
    """Where reading continues after a piece begun at `start` has failed at `place`, at most `limit`.

    That is `place` itself where it is the first thing on a line (the piece before was cut off), else the next line.
    """
    line = text.rfind("\n", start, place)
    if line >= 0 and not text[line:place].strip():
        return place
    newline = text.find("\n", place, limit)
    return limit if newline < 0 else min(limit, skip_space(text, newline))
