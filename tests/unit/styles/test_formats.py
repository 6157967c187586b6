"""The formats of model families: their outputs as vLLM's own tests have them, both directions, spans, hostile text."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_core.records import Tool, ToolCall
from rest_core.response import Kind, Response
from rest_core.styles.formats import FAMILIES, FORMATS

SCHEMA: dict[str, Any] = {
    "city": {"type": "string"},
    "days": {"type": "integer"},
    "wind": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    "exact": {"type": "boolean"},
    "places": {"type": "array", "items": {}},
    "options": {"type": "object"},
}
TOOLS = [Tool(name, "", {"type": "object", "properties": SCHEMA}) for name in ("get_weather", "geo.find")]
FULL = ToolCall(
    "get_weather",
    {
        "city": "Sant'Óscar \"\\ <b>\n2",
        "days": 3,
        "wind": -1.5e-7,
        "exact": True,
        "places": [1, {"a": None}, []],
        "options": {"x": {"y": "z"}, "n": False},
    },
)
BARE = ToolCall("geo.find", {})


def read(family: str, text: str) -> Response:
    return FORMATS[family]().parse(text, TOOLS)


@pytest.mark.parametrize("family", FORMATS)
@pytest.mark.parametrize("think", [None, "The user wants\nthe weather."])
@pytest.mark.parametrize("calls", [[FULL], [FULL, BARE, FULL], [BARE], []], ids=len)
@pytest.mark.parametrize("words", [None, "Let me see: 100 % (a [b] {c})"])
def test_what_is_written_is_read_back(family: str, think: str | None, calls: list[ToolCall], words: str | None) -> None:
    if not calls and words is None:
        return
    text = FORMATS[family]().write(think=think, calls=calls, response=words)
    made = read(family, text)
    assert list(made.calls) == calls
    assert made.think == think and made.well_formed, made.problems
    only_calls = family in ("llama3_json", "pythonic") and calls  # these have no place for words beside them
    assert made.response == (None if only_calls else words)


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_point_at_what_they_name(family: str) -> None:
    text = FORMATS[family]().write(think="why", calls=[FULL, BARE], response=None)
    made = read(family, text)
    names = [text[spans.name.start : spans.name.end] for spans in made.call_spans]
    assert names == ["get_weather", "geo.find"]
    full, bare = (text[spans.arguments.start : spans.arguments.end] for spans in made.call_spans)
    assert "Óscar" in full and "options" in full and "get_weather" not in full
    assert bare in ("", "{}")
    assert made.blocks[0].kind is Kind.THINK
    assert {block.kind for block in made.blocks[1:]} == {Kind.TOOL_CALL}


CALL = ToolCall("f", {"x": 1})
OUTPUTS: dict[str, list[tuple[str, list[ToolCall]]]] = {
    "hermes": [
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>', [CALL]),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>' * 2, [CALL, CALL]),
        ('Sure.<tool_call>{"arguments": {"x": 1}, "name": "f"}</tool_call>', [CALL]),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}', [CALL]),  # up to the end of the text
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}', []),
        ('<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n', [CALL]),
        ("<think>\n<tool_call>\n</think>\nno", []),
        ("This is not a tool call.", []),
        ('<tool_call>\n{"id": "1", "type": "function", "name": "f", "arguments": {"x": 1}}\n</tool_call>', [CALL]),
    ],
    "llama3_json": [
        ('{"name": "f", "parameters": {"x": 1}}', [CALL]),
        ('<|python_tag|>{"name": "f", "parameters": {"x": 1}}', [CALL]),
        ('{"type": "function", "name": "f", "parameters": {"x": 1}}', [CALL]),
        ('Here is the result: {"name": "f", "arguments": {"x": 1}} Would you like more?', [CALL]),
        ('{"name": "f", "parameters": {"x": 1}}; {"name": "f", "parameters": {"x": 1}};\n' * 2, [CALL] * 4),
        ('{"name": "f", "parameters": {"x": 1}} I used {f} for this.', [CALL]),
        ('{"name": "f", "parameters": {"x": 1}} The arguments were {"x": 1}', [CALL]),
        ('{"name": "f", "parameters": {invalid}', []),
        ('{"parameters": {}}', []),
        ('{"name": "f"}', []),
        ("[]", []),
    ],
    "pythonic": [
        ("[f(x=1)]", [CALL]),
        ("[f(x=1), f(x=1)]", [CALL, CALL]),
        ("<|python_start|>[f(x=1)]<|python_end|>", [CALL]),
        ("Fine.<|tool_call_start|>[f(x=1)]<|tool_call_end|> And more.", [CALL]),
        (
            "[g(a='John', b=-2.5, c={'k': ['v', None]}, d=True, e=[], h={}, i=(1, 2))]",
            [
                ToolCall(
                    "g", {"a": "John", "b": -2.5, "c": {"k": ["v", None]}, "d": True, "e": [], "h": {}, "i": [1, 2]}
                )
            ],
        ),
        (r"[g(a='Martha\'s', b='\"cool\"')]", [ToolCall("g", {"a": "Martha's", "b": '"cool"'})]),
        ("[bad(x=b'z'), f(x=1)]", [CALL]),  # one bad call costs itself
        ("[calc(x=1e999), f(x=1)]", [CALL]),
        ("[f(x=1), f(a='x 'y', b='z')]", [CALL]),
        ("[f(a='x 'y' 'z), g(b='p 'q' 'r)]", []),
        ("[f(1)]", []),  # an argument without a name
        ("[f(x=__import__('os'))]", []),
        ("[f(x=1, x=2)]", []),
        ("How can I help you today?", []),
        ("[1, 2]", []),
    ],
    "mistral": [
        ('[TOOL_CALLS][{"name": "f", "arguments":{"x": 1}}]', [CALL]),
        ('[TOOL_CALLS] [{"arguments":{"x": 1}, "name": "f"}]', [CALL]),
        ('Hello[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}, "id": "123456789"}]', [CALL]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": 1}}]', [CALL, CALL]),
        ('[TOOL_CALLS] [{"name": "f", "arguments":{"x": 1}}]\nextra trailing data', [CALL]),
        ('[TOOL_CALLS]f{"x": 1}', [CALL]),
        ('[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]f[CALL_ID]abc[ARGS]{"x": 1}', [CALL, CALL]),
        ("[TOOL_CALLS] not json at all", []),
        ('[TOOL_CALLS]f{"x": 1', []),
        ("[TOOL_CALLS]", []),
        ("This is a test", []),
    ],
    "qwen3_coder": [
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nDallas\n</parameter>\n<parameter=days>\n2\n"
            "</parameter>\n</function>\n</tool_call>",
            [ToolCall("get_weather", {"city": "Dallas", "days": 2})],
        ),
        (
            "Sure!<tool_call><function=get_weather><parameter=wind>3</parameter></function></tool_call>\n" * 2,
            [ToolCall("get_weather", {"wind": 3})] * 2,
        ),
        (
            "<function=get_weather>\n<parameter=exact>\nTrue\n</parameter>\n</function>",  # no tags around it
            [ToolCall("get_weather", {"exact": True})],
        ),
        (
            '<tool_call>\n<function=get_weather>\n<parameter=options>\n{"a": 1,\n "b": [2]}\n</parameter>\n'
            "<parameter=places>\n['x', None]\n</parameter>\n<parameter=wind>\nnull\n</parameter>\n"
            "</function>\n</tool_call>",
            [ToolCall("get_weather", {"options": {"a": 1, "b": [2]}, "places": ["x", None], "wind": None})],
        ),
        (
            "<tool_call>\n<function=other>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
            [ToolCall("other", {"x": "1"})],  # nothing says that it is a number
        ),
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\na </function></tool_call> b\n\n</parameter>\n"
            "</function>\n</tool_call>",
            [ToolCall("get_weather", {"city": "a </function></tool_call> b\n"})],
        ),
        (
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nDallas\n</parameter>\n</function>",
            [ToolCall("get_weather", {"city": "Dallas"})],
        ),
        ("<tool_call>\n<function=get_weather>\n<parameter=city>\nDallas", []),
        ("<tool_call>\n<function=get_weather>\njunk\n</function>\n</tool_call>", []),
        ("<tool_call></tool_call>", []),
        ("This is a test response without any tool calls", []),
    ],
}


@pytest.mark.parametrize(("family", "text", "calls"), [(f, *case) for f, cases in OUTPUTS.items() for case in cases])
def test_outputs_of_the_families(family: str, text: str, calls: list[ToolCall]) -> None:
    assert list(read(family, text).calls) == calls


@pytest.mark.parametrize(
    ("family", "text", "problem"),
    [
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {"x": 1}}', "not closed"),
        ("hermes", '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\ndone', "words behind"),
        ("hermes", "", "neither"),
        ("hermes", "words </tool_call>", "not closed, or not opened"),
        ("hermes", "words <think> a </think>", "thoughts that are not at the beginning"),
        ("hermes", "<tool_call>\nnonsense\n</tool_call>", "cannot be read"),
        ("hermes", "<tool_call>\n</tool_call>", "empty"),
        ("hermes", "<think>\n<tool_call>\n</think>\nno", "inside"),
        ("llama3_json", '{"name": "f", "parameters": {', "cannot be read"),
        ("llama3_json", '{"name": "f", "parameters": {}} done', "words behind"),
        ("pythonic", "[f(x=1", "cannot be read"),
        ("pythonic", "[f(x=1)", "not closed"),
        ("pythonic", "<|tool_call_start|>no list<|tool_call_end|>", "not closed, or not opened"),
        ("mistral", "[TOOL_CALLS]", "without a call"),
        ("qwen3_coder", "<function=f>\n</function>", "without <tool_call>"),
        ("qwen3_coder", "<tool_call>\n<function=f>\n</function>", "not closed"),
        ("qwen3_coder", "<tool_call>x<function=f>\n</function></tool_call>", "cannot be read"),
    ],
)
def test_problems_say_what_is_not_as_the_family_writes_it(family: str, text: str, problem: str) -> None:
    assert any(problem in found for found in read(family, text).problems), read(family, text).problems


_PIECES = [
    *("<think>", "</think>", "[THINK]", "[/THINK]", "<tool_call>", "</tool_call>", "<function=", ">", "</function>"),
    *("<parameter=a>", "</parameter>", "<|python_tag|>", "<|python_start|>", "<|tool_call_start|>", "[TOOL_CALLS]"),
    *("[ARGS]", "[", "]", "{", "}", "(", ")", ",", ":", "=", "'", '"', "\\", "\n", " ", "f(", "[f(", "a=", "1", "-"),
    *('"name"', '"arguments"', '"parameters"', '{"name": "f", "arguments": {}}', "[f(a=1)]", "None", "é", "\ud800"),
]
hostile = st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=50).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=300)
@given(text=hostile)
def test_no_text_makes_a_parser_raise_and_spans_are_consistent(family: str, text: str) -> None:
    made = read(family, text)
    assert len(made.calls) == len(made.call_spans)
    end = 0
    for block in made.blocks:
        assert end <= block.open_tag.start <= block.open_tag.end == block.content.start
        assert block.content.start <= block.content.end == block.close_tag.start <= block.close_tag.end
        end = block.close_tag.end
    assert end <= len(text)
    blocks = [block.content for block in made.blocks if block.kind is Kind.TOOL_CALL]
    place = 0
    for call, spans in zip(made.calls, made.call_spans, strict=True):
        assert place <= spans.whole.start and any(
            b.start <= spans.whole.start and spans.whole.end <= b.end for b in blocks
        )
        place = spans.whole.end
        for inner in (spans.name, spans.arguments):
            assert spans.whole.start <= inner.start <= inner.end <= spans.whole.end
        written = text[spans.name.start : spans.name.end]
        assert written == call.name or json.loads(f'"{written}"') == call.name
        json.dumps(call.arguments)
    assert made.well_formed == (not made.problems)
    assert not (made.rejected and made.well_formed)


_ATTACKS = [
    *(("", piece) for piece in _PIECES),
    *(("[TOOL_CALLS][", piece) for piece in ('{"a":', '{"name":"', "{", "[", '{"name": "f", "arguments": {}},')),
    *(("", f"[TOOL_CALLS]{piece}") for piece in ("f", "{", '[{"', "f[CALL_ID]", "f[ARGS]{")),
    *(("[f(", piece) for piece in ("a=[", "a='", 'a="\\', "a=1, ", "b=(", "f(", "x=1), f(", "a={'k':", "a=1e999), f(")),
    *(("<|python_start|>", f"[f({piece}") for piece in ("", "a='", "a=1)]<|python_start|>")),
    *(("", f"{{{piece}") for piece in ('"name":"', '"name": {', '"name"', '"name":x', "    ", '"a": "\\')),
    *(("<tool_call><function=f>", piece) for piece in ("<parameter=a>", "<parameter=a></parameter>", "<function=f>")),
    *(("", f"<tool_call><function=f{piece}") for piece in ("", ">", "><parameter=b>")),
    ("<tool_call>", '{"name": "f", "arguments": {}}\n'),
    ("<think>", "<tool_call>"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_text_takes_linear_time(family: str) -> None:
    def seconds(start: str, unit: str, length: int) -> float:
        text = start + unit * (length // len(unit))
        took = []
        for _ in range(3):
            begun = time.process_time()
            read(family, text)
            took.append(time.process_time() - begun)
        return min(took)

    for start, unit in _ATTACKS:
        short, long = seconds(start, unit, 4_000), seconds(start, unit, 40_000)
        assert long < 40 * short + 0.05, (start, unit, short, long)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "f", "arguments": {"x": %s}}\n</tool_call>',
        '{"name": "f", "parameters": {"x": %s}}',
        "[f(x=%s)]",
        '[TOOL_CALLS]f{"x": %s}',
        "<tool_call>\n<function=get_weather>\n<parameter=places>\n%s\n</parameter>\n</function>\n</tool_call>",
    ],
)
def test_nesting_is_bounded(family: str, text: str) -> None:
    made = read(family, text % ("[" * 5000 + "]" * 5000))
    assert all(not isinstance(value, list) for call in made.calls for value in call.arguments.values())
