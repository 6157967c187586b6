"""The one parser of a model response: text in, typed spans and calls out.

A response is

    <think> reasoning </think>
    <tool_call>
    {"name": "get_weather", "parameters": {"city": "Oslo"}}
    {"name": …}
    </tool_call>
    <response> words for the user </response>

with at most one block of each kind, in this order, and at least a `<tool_call>` or a `<response>`. "arguments" is
accepted for "parameters". Rewards, token regions, evaluation and data validation all read the result of `parse`;
nothing else in the project looks for tags.

The text may be anything: model output is hostile. `parse` never raises, and its time is linear in the length:
the tag scan and the JSON scan each pass over it once (a JSON scan that fails resumes where it failed). Nesting below
`MAX_DEPTH` is refused, so that what reads `.calls` may recurse.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rest_core.records import ToolCall

MAX_DEPTH = 32  # of a JSON value inside a call; published tool data stays below 10


class Kind(Enum):
    """The three kinds of block; the values are the tag names."""

    THINK = "think"
    TOOL_CALL = "tool_call"
    RESPONSE = "response"


_ORDER = {Kind.THINK: 0, Kind.TOOL_CALL: 1, Kind.RESPONSE: 2}
_TAG = re.compile(r"<(/?)(think|tool_call|response)>")
_JSON_SPACE = re.compile(r"[ \t\n\r]*+")
_JSON_TOKEN = re.compile(
    r"""[ \t\n\r]*+(?:
        ("(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+")   # string
      | (-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:[eE][+-]?[0-9]++)?)         # number
      | (true|false|null)
      | ([{}\[\],:])
    )""",
    re.VERBOSE,
)
_ARGUMENT_KEYS = ("parameters", "arguments")


@dataclass(frozen=True)
class Span:
    """Characters `start` (inclusive) to `end` (exclusive) of the text."""

    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """A closed block: `open_tag` + content + `close_tag`, without a gap."""

    kind: Kind
    open_tag: Span
    content: Span
    close_tag: Span


@dataclass(frozen=True)
class CallSpans:
    """Where a call stands: the whole object, its name without quotes, its arguments with their braces."""

    whole: Span
    name: Span
    arguments: Span


@dataclass(frozen=True)
class Response:
    """What a response says, and where. `calls[i]` stands at `call_spans[i]`; spans count characters of `text`."""

    text: str
    calls: tuple[ToolCall, ...]
    call_spans: tuple[CallSpans, ...]
    blocks: tuple[Block, ...]
    think: str | None  # content of the first think block, stripped
    response: str | None  # content of the first response block, stripped
    rejected_calls: int  # pieces of tool_call blocks that are no call
    tags: tuple[str, ...]  # every tag in order, those inside blocks and the stray ones included
    problems: tuple[str, ...]  # why it is not well formed, for people; empty when it is

    @property
    def well_formed(self) -> bool:
        """Exactly the format: closed blocks in order, once each, nothing around them, every call readable."""
        return not self.problems


def parse(text: str) -> Response:
    """Read one response. Never raises, whatever the text; linear time."""
    blocks, tags, problems = _scan_blocks(text)
    calls: list[ToolCall] = []
    spans: list[CallSpans] = []
    rejected = 0
    for block in blocks:
        if block.kind is Kind.TOOL_CALL:
            found, bad = _scan_calls(text, block.content)
            calls += [call for call, _ in found]
            spans += [span for _, span in found]
            rejected += bad
    if rejected:
        problems.append(f"{rejected} piece(s) of a tool_call block that cannot be read as a call")
    return Response(
        text=text,
        calls=tuple(calls),
        call_spans=tuple(spans),
        blocks=tuple(blocks),
        think=_first_content(text, blocks, Kind.THINK),
        response=_first_content(text, blocks, Kind.RESPONSE),
        rejected_calls=rejected,
        tags=tuple(tags),
        problems=tuple(problems),
    )


def render(*, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
    """The text of a response; `parse` reads it back. Calls are written one a line, with "parameters"."""
    parts = []
    if think is not None:
        parts.append(f"<think> {think} </think>")
    if calls:
        lines = (json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False) for call in calls)
        parts.append("\n".join(["<tool_call>", *lines, "</tool_call>"]))
    if response is not None:
        parts.append(f"<response> {response} </response>")
    return "\n".join(parts)


def _first_content(text: str, blocks: Sequence[Block], kind: Kind) -> str | None:
    for block in blocks:
        if block.kind is kind:
            return text[block.content.start : block.content.end].strip()
    return None


def _scan_blocks(text: str) -> tuple[list[Block], list[str], list[str]]:
    """Closed blocks, every tag, and what is wrong with the structure.

    A block runs from its opening tag to the next closing tag of its kind; other tags between are content (so a call
    inside a think block is thought about, not made). An opening tag that nothing closes opens nothing.
    """
    found = list(_TAG.finditer(text))
    # Closers of each kind by position, so that an unclosed opener costs no scan to the end of the text.
    closers: dict[str, list[int]] = {kind.value: [] for kind in Kind}
    for index, match in enumerate(found):
        if match[1]:
            closers[match[2]].append(index)
    cursor = dict.fromkeys(closers, 0)

    blocks: list[Block] = []
    problems: list[str] = []
    outside_from, index = 0, 0
    stray = inner = 0
    outside_is_blank = True
    while index < len(found):
        match = found[index]
        name = match[2]
        positions = closers[name]
        while cursor[name] < len(positions) and positions[cursor[name]] <= index:
            cursor[name] += 1
        if match[1] or cursor[name] == len(positions):
            stray += 1
            index += 1
            continue
        close_index = positions[cursor[name]]
        close = found[close_index]
        blocks.append(
            Block(
                kind=Kind(name),
                open_tag=Span(match.start(), match.end()),
                content=Span(match.end(), close.start()),
                close_tag=Span(close.start(), close.end()),
            )
        )
        inner += close_index - index - 1
        outside_is_blank = outside_is_blank and not text[outside_from : match.start()].strip()
        outside_from = close.end()
        index = close_index + 1
    outside_is_blank = outside_is_blank and not text[outside_from:].strip()

    kinds = [block.kind for block in blocks]
    if stray:
        problems.append("a tag that is not closed, or not opened")
    if inner:
        problems.append("a tag inside a block")
    if not outside_is_blank:
        problems.append("text outside the blocks")
    if len(set(kinds)) != len(kinds):
        problems.append("a block that occurs more than once")
    elif kinds != sorted(kinds, key=_ORDER.__getitem__):
        problems.append("blocks out of order")
    if Kind.TOOL_CALL not in kinds and Kind.RESPONSE not in kinds:
        problems.append("neither a tool_call nor a response block")
    if any(not text[b.content.start : b.content.end].strip() for b in blocks):
        problems.append("an empty block")
    return blocks, [match[0] for match in found], problems


class _Malformed(Exception):
    """The piece of text that was begun is no JSON object; `place` is where that showed."""

    def __init__(self, place: int) -> None:
        self.place = place


@dataclass(frozen=True)
class _Member:
    """A key of an object and where its value stands in the scanned text."""

    key: str
    value: Span


def _scan_calls(text: str, content: Span) -> tuple[list[tuple[ToolCall, CallSpans]], int]:
    """The calls in a tool_call block, and the number of pieces that are none.

    Calls are JSON objects one after the other, white space between (one a line is the format; printed over several
    lines is read as well). A piece that cannot be read costs that piece alone: reading goes on at the next line.
    """
    body = text[content.start : content.end]
    calls: list[tuple[ToolCall, CallSpans]] = []
    rejected = 0
    position = _skip_space(body, 0)
    while position < len(body):
        try:
            end, members = _scan_object(body, position)
        except _Malformed as error:
            rejected += 1
            position = _next_line(body, position, error.place)
            continue
        call = _as_call(body, position, end, members, content.start)
        if call is None:
            rejected += 1
        else:
            calls.append(call)
        position = _skip_space(body, end)
    return calls, rejected


def _as_call(
    body: str, start: int, end: int, members: Sequence[_Member], offset: int
) -> tuple[ToolCall, CallSpans] | None:
    """The call that a JSON object spells, None where it is something else.

    Only the object's own keys count, so a "name" deeper inside is an argument like any other. A further key, a
    repeated key, or both spellings of the arguments make the meaning unclear: no call.
    """
    places = {member.key: member.value for member in members}
    keys = [key for key in _ARGUMENT_KEYS if key in places]
    if len(members) != 2 or len(places) != 2 or len(keys) != 1 or "name" not in places:
        return None
    name, arguments = places["name"], places[keys[0]]
    if body[name.start] != '"' or name.end - name.start == 2 or body[arguments.start] != "{":
        return None
    call = ToolCall(json.loads(body[name.start : name.end]), json.loads(body[arguments.start : arguments.end]))
    return call, CallSpans(
        whole=Span(offset + start, offset + end),
        name=Span(offset + name.start + 1, offset + name.end - 1),
        arguments=Span(offset + arguments.start, offset + arguments.end),
    )


def _scan_object(body: str, start: int) -> tuple[int, list[_Member]]:
    """End of the JSON object (RFC 8259) at `start`, and its own members; raises `_Malformed`.

    A pushdown automaton over tokens: one pass, no recursion, nothing is built. `json` alone would not do: it has no
    spans, accepts NaN, recurses, and the cost of each of its errors grows with the place of the error.
    """
    members: list[_Member] = []
    stack: list[str] = []  # open brackets
    key, value_start = "", 0  # of the member at depth 1 that is being read
    expect = "value"
    position = start
    while True:
        match = _JSON_TOKEN.match(body, position)
        if match is None:
            raise _Malformed(_skip_space(body, position))
        string, number, _literal, mark = match.groups()
        begin, position = match.start(match.lastindex or 0), match.end()
        if not stack and mark != "{":
            raise _Malformed(begin)

        if expect in ("key", "key or end"):
            if string is not None:
                if len(stack) == 1:
                    key = json.loads(string)
                expect = "colon"
                continue
            if mark != "}" or expect == "key":
                raise _Malformed(begin)
        elif expect == "colon":
            if mark != ":":
                raise _Malformed(begin)
            expect = "value"
            continue
        elif expect in ("value", "value or end"):
            if len(stack) == 1:
                value_start = begin
            if mark in ("{", "["):
                if len(stack) > MAX_DEPTH:
                    raise _Malformed(begin)
                stack.append(mark)
                expect = "key or end" if mark == "{" else "value or end"
                continue
            if mark is not None and (mark != "]" or expect == "value"):
                raise _Malformed(begin)
            if number is not None and not _is_float64(number):
                raise _Malformed(begin)
        elif mark == ",":  # expect == "comma or end"
            expect = "key" if stack[-1] == "{" else "value"
            continue
        elif mark != ("}" if stack[-1] == "{" else "]"):
            raise _Malformed(begin)

        # Here a value is complete: a string, number or literal, or a container that `mark` has just closed.
        if mark is not None:
            stack.pop()
            if not stack:
                return position, members
        if len(stack) == 1:
            members.append(_Member(key, Span(value_start, position)))
        expect = "comma or end"


def _is_float64(number: str) -> bool:
    """True where the number is in the range of a float64, as JSON readers expect (RFC 8259, section 6)."""
    return abs(float(number)) != float("inf")


def _next_line(body: str, start: int, place: int) -> int:
    """Where reading goes on after a piece begun at `start` has failed at `place`.

    That is `place` itself where it is the first thing on a line (the piece before was cut off), else the next line.
    """
    line = body.rfind("\n", start, place)
    if line >= 0 and not body[line:place].strip():
        return place
    newline = body.find("\n", place)
    return len(body) if newline < 0 else _skip_space(body, newline)


def _skip_space(body: str, position: int) -> int:
    match = _JSON_SPACE.match(body, position)
    assert match is not None  # the pattern matches the empty string
    return match.end()
