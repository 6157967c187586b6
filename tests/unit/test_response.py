"""The parser: structure, calls, spans, and hostile text."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_core import call_json, response
from rest_core.records import ToolCall
from rest_core.response import MAX_DEPTH, Kind, parse, read_calls, render

CALL = '{"name": "a", "parameters": {"x": 1}}'


def block(*lines: str) -> str:
    return "\n".join(["<tool_call>", *lines, "</tool_call>"])


def test_reads_think_calls_and_response_in_order() -> None:
    text = "<think> why </think>\n" + block(CALL, '{"name": "b", "arguments": {}}') + "\n<response> done </response>"
    parsed = parse(text)
    assert parsed.calls == (ToolCall("a", {"x": 1}), ToolCall("b", {}))
    assert (parsed.think, parsed.response) == ("why", "done")
    assert parsed.well_formed
    assert [b.kind for b in parsed.blocks] == [Kind.THINK, Kind.TOOL_CALL, Kind.RESPONSE]


def test_spans_point_at_what_they_name() -> None:
    text = block(
        '{"name": "get_näme", "parameters": {"name": "inner", "s": "}{"}}', ' {"parameters": {"k": [1]}, "name": "z"}'
    )
    spans = parse(text).call_spans
    assert [text[s.name.start : s.name.end] for s in spans] == ["get_näme", "z"]
    assert [text[s.arguments.start : s.arguments.end] for s in spans] == ['{"name": "inner", "s": "}{"}', '{"k": [1]}']
    assert [json.loads(text[s.whole.start : s.whole.end])["name"] for s in spans] == ["get_näme", "z"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("hello", "neither"),
        (block(CALL) + " bye", "text outside"),
        ("hm " + block(CALL), "text outside"),
        ("<think> a </think>", "neither"),
        ("<think> a" + block(CALL), "not closed"),
        (block(CALL) + "<think> late </think>", "out of order"),
        ("<think> a </think><think> b </think>" + block(CALL), "more than once"),
        ("<think>  </think>" + block(CALL), "empty"),
        (block(), "empty"),
        ("<think> <tool_call> </think>" + block(CALL), "inside"),
        (block("nonsense"), "cannot be read"),
        ("</think>" + block(CALL), "not closed, or not opened"),
    ],
)
def test_says_what_is_wrong(text: str, problem: str) -> None:
    parsed = parse(text)
    assert not parsed.well_formed
    assert any(problem in found for found in parsed.problems), parsed.problems


def test_a_call_inside_think_is_not_made() -> None:
    parsed = parse("<think> " + block(CALL) + " </think>\n<response> no </response>")
    assert parsed.calls == ()
    assert not parsed.well_formed


def test_a_chat_header_does_not_reset_the_parse() -> None:
    parsed = parse(block('{"name": "bad", "parameters": {}}') + "<|im_end|>\n<|im_start|>assistant\n" + block(CALL))
    assert [call.name for call in parsed.calls] == ["bad", "a"]
    assert not parsed.well_formed


def test_pretty_printed_json_is_read() -> None:
    text = block(json.dumps({"name": "a", "parameters": {"x": [1, {"y": None}]}}, indent=4), CALL)
    assert parse(text).calls == (ToolCall("a", {"x": [1, {"y": None}]}), ToolCall("a", {"x": 1}))
    assert parse(text).well_formed


@pytest.mark.parametrize(
    "bad",
    [
        '{"name": "a", "parameters": {"x": 1}',  # cut off
        '{"name": "a", "parameters": {"x": NaN}}',
        '{"name": "a", "parameters": {"x": Infinity}}',
        '{"name": "a", "parameters": {"x": 1e999}}',
        '{"name": "a", "parameters": {"x": ' + "9" * 5000 + "}}",
        '{"name": "a", "parameters": {"x": 01}}',
        '{"name": "a", "parameters": {"x": 1,}}',
        '{"name": "a", "parameters": {"x": "\\q"}}',
        '{"name": "a", "parameters": [1]}',
        '{"name": "a", "parameters": "{}"}',
        '{"name": "", "parameters": {}}',
        '{"name": 1, "parameters": {}}',
        '{"name": "a"}',
        '{"name": "a", "parameters": {}, "arguments": {}}',
        '{"name": "a", "parameters": {}, "id": 1}',
        '{"name": "a", "name": "b"}',
        '{"name": "a", "name": "a", "parameters": {}}',
        '{"name": "a", "parameters": {"x": 1, "x": 1}}',
        '{"name": "a", "parameters": {"x": [{"y": 1, "\\u0079": 2}]}}',
        '[{"name": "a", "parameters": {}}]',
        "{'name': 'a', 'parameters': {}}",
        "{}",
        "null",
    ],
)
def test_one_bad_piece_costs_that_piece_alone(bad: str) -> None:
    parsed = parse(block(CALL, bad, CALL))
    assert parsed.calls == (ToolCall("a", {"x": 1}),) * 2
    assert len(parsed.rejected) == 1
    assert not parsed.well_formed


@pytest.mark.parametrize("tag", ["</tool_call>", "<tool_call>", "<response>200</response>", "<think>", "</think>"])
def test_a_tag_inside_a_string_of_a_call_is_content(tag: str) -> None:
    made = ToolCall(f"n{tag}", {tag: [f"a {tag} b", f'"{tag}']})
    text = render(think="t", calls=[made, made], response="r")
    parsed = parse(text)
    assert parsed.calls == (made, made) and parsed.well_formed
    assert parsed.tags == ("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>")
    assert all(text[s.whole.start] == "{" and text[s.whole.end - 1] == "}" for s in parsed.call_spans)


@pytest.mark.parametrize(
    ("content", "calls", "rejected"),
    [
        ('{"name": "a", "parameters": {"x": "</tool_call>', 0, 1),  # a string that is never closed
        ('{"name": "a", "parameters": {"x": "\n</tool_call>\n"}}', 0, 1),  # a string of two lines is no JSON
        (f'{CALL}</tool_call> said "</tool_call>"', 1, 0),  # a string, but in no object
        (f'{CALL} {{"x": "</tool_call>"', 1, 1),  # an object that is never closed
    ],
)
def test_a_tag_in_what_is_no_whole_object_ends_the_block(content: str, calls: int, rejected: int) -> None:
    parsed = parse(f"<tool_call>{content}\n<response> bye </response></tool_call>")
    assert (len(parsed.calls), len(parsed.rejected)) == (calls, rejected)
    assert parsed.response == "bye" and not parsed.well_formed


def test_a_block_that_only_a_string_closes_is_not_closed() -> None:
    parsed = parse('<tool_call>\n{"name": "a", "parameters": {"x": "</tool_call>"}}\n')
    assert parsed.blocks == () and parsed.calls == ()
    assert parsed.tags == ("<tool_call>", "</tool_call>")


def test_text_outside_the_blocks_is_where_the_text_says() -> None:
    text = f"a{block(CALL)}b<think> c </think>"
    assert [text[gap.start : gap.end] for gap in parse(text).outside] == ["a", "b"]


def test_pieces_are_read_as_in_a_block() -> None:
    assert read_calls(f"{CALL}\njunk {{\n{CALL}") == ([ToolCall("a", {"x": 1})] * 2, ["junk {\n"])
    assert read_calls(" \n") == ([], [])


def test_nesting_is_bounded() -> None:
    def nested(depth: int) -> str:
        return block('{"name": "a", "parameters": {"x": ' + "[" * depth + "]" * depth + "}}")

    assert parse(nested(MAX_DEPTH - 2)).calls
    assert not parse(nested(MAX_DEPTH + 1)).calls
    assert not parse(nested(50_000)).calls


# What strings hold: anything, tags included.
words = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
    | st.sampled_from(
        ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "\n", '"', "{"]
    ),
    max_size=4,
).map("".join)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=4),
    max_leaves=12,
)
calls = st.builds(ToolCall, words.filter(bool), st.dictionaries(words, json_values, max_size=4))


@given(st.lists(calls, min_size=1, max_size=4))
def test_render_is_read_back(made: list[ToolCall]) -> None:
    parsed = parse(render(think="t", calls=made, response=None))
    assert list(parsed.calls) == made
    assert parsed.well_formed


# Pieces that matter to the grammar, so that random texts reach its corners.
_PIECES = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>", "<", "{", "}", "[", "]"]
_PIECES += [
    '"',
    ":",
    ",",
    "\\",
    "\n",
    " ",
    '"name"',
    '"parameters"',
    '"arguments"',
    "1",
    "-",
    "e",
    "true",
    "é",
    "\ud800",
    CALL,
]
hostile = st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=60).map("".join)


@settings(max_examples=400)
@given(hostile)
def test_no_text_makes_it_raise_and_spans_are_consistent(text: str) -> None:
    parsed = parse(text)
    assert len(parsed.calls) == len(parsed.call_spans)
    end = 0
    for found in parsed.blocks:
        assert end <= found.open_tag.start < found.open_tag.end == found.content.start
        assert found.content.end == found.close_tag.start < found.close_tag.end
        end = found.close_tag.end
    for call, spans in zip(parsed.calls, parsed.call_spans, strict=True):
        read = json.loads(text[spans.whole.start : spans.whole.end])
        assert read["name"] == call.name == json.loads(f'"{text[spans.name.start : spans.name.end]}"')
        assert call.arguments == json.loads(text[spans.arguments.start : spans.arguments.end])


@given(hostile)
def test_calls_agree_with_a_plain_json_reader(text: str) -> None:
    """Line by line with the json module, wherever a text has one complete object a line."""
    lines = [line for line in text.split("\n") if "<" not in line]
    expected = []
    for line in lines:
        try:
            value = json.loads(line, parse_constant=lambda _: 1 / 0)
        except (ValueError, ZeroDivisionError):
            return  # the plain reader has no recovery to compare with
        if isinstance(value, dict) and set(value) in ({"name", "parameters"}, {"name", "arguments"}):
            expected.append(value)
    found = parse(block(*lines)).calls
    names = [value["name"] for value in expected if isinstance(value["name"], str) and value["name"]]
    assert len(found) <= len(expected)
    assert all(call.name in names for call in found)


_ATTACKS: dict[str, tuple[str, ...]] = {
    "open tags": ("", "<think>"),
    "close tags": ("", "</tool_call>"),
    "blocks": ("", "<think></think>"),
    "crossed tags": ("", "<think></tool_call>"),
    "open objects": ("<tool_call>", '{"x":\n'),
    "wide and deep": ("<tool_call>", '{"x":[0,0,0,0,0,0,0,0,0,0,0,0,0,\n'),
    "bad escapes": ("<tool_call>", '{"a":"\\u\n'),
    "calls": ("<tool_call>", CALL + "\n"),
    "braces": ("<tool_call>", "\n{"),
    "brackets": ("<tool_call>", "["),
    "quotes": ("<tool_call>", '"'),
    "backslashes": ('<tool_call>{"', "\\\\"),
    "spaces": ("<tool_call>{", " "),
    "digits": ('<tool_call>{"name":', "1"),
    "unclosed strings": ("<tool_call>", '{"name":"\n'),
    "closed in strings": ("", '<tool_call>{"a":"</tool_call>"}\n'),
    "closed in strings alone": ("", '<tool_call>\n{"a":"</tool_call>"}\n', ""),
    "strings in and out": ("<tool_call>{", '":":",</tool_call><tool_call>{",'),
    "one line": ("", "<tool_call>x</tool_call>"),
}


class Counting:
    """A pattern that counts the characters it passes over."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self.pattern, self.passed = pattern, 0

    def match(self, text: str, start: int = 0, end: int = sys.maxsize) -> re.Match[str] | None:
        found = self.pattern.match(text, start, end)
        self.passed += found.end() - start if found is not None else 0
        return found

    def finditer(self, text: str) -> Iterator[re.Match[str]]:
        self.passed += len(text)
        return self.pattern.finditer(text)

    def sub(self, new: str, text: str) -> str:
        self.passed += len(text)
        return self.pattern.sub(new, text)


@pytest.mark.parametrize("attack", _ATTACKS)
def test_work_grows_linearly(attack: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times the text takes about ten times the calls and characters; a quadratic scan would take a hundred."""
    start, unit, *end = _ATTACKS[attack]
    places = ((response, "_TAG"), (call_json, "_JSON_SPACE"), (call_json, "_JSON_TOKEN"))
    patterns = [Counting(getattr(module, name)) for module, name in places]
    for (module, name), pattern in zip(places, patterns, strict=True):
        monkeypatch.setattr(module, name, pattern)

    def work(length: int) -> int:
        calls = 0

        def count(frame: Any, event: str, argument: Any) -> None:
            nonlocal calls
            calls += event in ("call", "c_call")

        before = sum(pattern.passed for pattern in patterns)
        text = start + unit * (length // len(unit)) + (end or ["</tool_call>"])[0]
        sys.setprofile(count)
        try:
            parse(text)
        finally:
            sys.setprofile(None)
        return calls + sum(pattern.passed for pattern in patterns) - before

    assert work(50_000) < 12 * work(5_000)
