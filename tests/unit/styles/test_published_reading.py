"""The authors' rules of reading, by the perturbations of a right answer in which theirs and ours may differ."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.evaluation.api_bank import soft_match
from rest_core.records import ToolCall
from rest_core.response import parse
from rest_core.styles.published import api_bank_match, bfcl_calls

WANTED = ToolCall("Weather", {"city": "Oslo", "days": 1})
RIGHT = '{"name": "Weather", "parameters": {"city": "Oslo", "days": 1}}'
OTHER = '{"name": "Weather", "parameters": {"city": "Rome", "days": 1}}'


def block(*lines: str) -> str:
    return "\n".join(["<think> t </think>", "<tool_call>", *lines, "</tool_call>"])


API_BANK = [  # text, the published rule, our soft rule
    (block(RIGHT), True, True),
    (block(OTHER), False, False),
    (block(OTHER, RIGHT), True, True),
    (block("junk", RIGHT), True, True),
    (block('{"city": "Oslo", "days": 1}'), True, True),  # bare parameters
    (block('{"name": "Weather", "city": "Oslo", "days": 1}'), False, False),
    (block(RIGHT.replace(": 1", ": 1.0")), True, True),
    (block(RIGHT.replace(": 1", ": true")), True, True),
    (block(RIGHT.replace("Weather", "weather")), False, False),
    (RIGHT, True, False),  # without tags the whole text is read
    (f"Sure:\n{RIGHT}\nThere.", True, False),
    (f"Sure: {RIGHT}", False, False),
    (f"<tool_call>\n{RIGHT}", True, False),  # not closed
    (f"<think> <tool_call>\n{RIGHT}\n</tool_call> </think>", True, False),  # inside of thoughts
    (block(RIGHT[:-1] + ', "id": 3}'), True, False),  # a third key
    (block(json.dumps(RIGHT)), True, False),  # a JSON string of a call
    (block(RIGHT.replace("parameters", "arguments")), False, True),
    (f"{block(RIGHT)}\n{block(OTHER)}", False, True),  # the last block counts
    (f"{block(OTHER)}\n{block(RIGHT)}", True, True),
    (block(json.dumps(json.loads(RIGHT), indent=1)), False, True),  # over several lines
    (block(f"{RIGHT} {RIGHT}"), False, True),  # two on a line
    (block(f"{RIGHT},"), False, True),
    (block("3", RIGHT), False, True),  # a value without keys ends their reading
    (block("null", RIGHT), False, True),
    (block('"words"', RIGHT), False, True),
    (block('["x"]', RIGHT), True, True),
    (block('["name", "parameters"]', RIGHT), False, True),
    (block(f"[{RIGHT}]"), False, False),
    (f"```\n{RIGHT}\n```", True, False),
    (f"<tool_call>{RIGHT}</tool_call>", True, True),
    (f"{block(RIGHT)}\n<response> done </response>", True, True),
    (f"{block(RIGHT)} <tool_call>", False, True),  # a tag behind it begins a last block
    (block('{"city": "Rome", "city": "Oslo", "days": 1}'), True, True),
    (block(""), False, False),
    ("", False, False),
    ("<response> Oslo </response>", False, False),
]


@pytest.mark.parametrize(("text", "published", "ours"), API_BANK)
def test_api_bank(text: str, published: bool, ours: bool) -> None:
    assert (api_bank_match(text, WANTED), soft_match(parse(text), WANTED)) == (published, ours)


CALL = ToolCall("f", {"x": 1})


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n</tool_call>', [CALL]),
        ('<tool_call>\n{"name": "f", "parameters": {"x": 1}}\n{"name": "f", "parameters": {"x": 1}}', [CALL, CALL]),
        ('<tool_call>\njunk\n{"name": "f", "parameters": {"x": 1}, "id": 7}\n</tool_call>', [CALL]),
        ('<tool_call>x</tool_call><tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call>', [CALL]),
        ('<tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call><tool_call>x</tool_call>', []),
        ('<think><tool_call>{"name": "f", "parameters": {"x": 1}}</tool_call></think>', [CALL]),
        ('<tool_call>{"name": " None", "parameters": {"x": 1}}</tool_call>', []),
        ('<tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>', []),
        ('<tool_call>{"name": 3, "parameters": {"x": 1}}</tool_call>', []),
        ('<tool_call>{"name": "f", "parameters": [1]}</tool_call>', [ToolCall("f", {})]),
        ('<tool_call>{"name": "f", "parameters": {"x": ' + "[" * 40 + "]" * 40 + "}}</tool_call>", [ToolCall("f", {})]),
        ('<tool_call>{"name": "f", "parameters": {"x": NaN}}</tool_call>', [ToolCall("f", {"x": "NaN"})]),
        ('<tool_call>{"name": "f", "parameters": {"x": 1e999}}</tool_call>', [ToolCall("f", {"x": "1e999"})]),
        ('{"name": "f", "parameters": {"x": 1}}', []),  # no tag, no call
        ("<tool_call>[]</tool_call>", []),
        ("", []),
    ],
)
def test_bfcl(text: str, calls: list[ToolCall]) -> None:
    assert list(bfcl_calls(text)) == calls


@given(st.lists(st.sampled_from(["<tool_call>", "</tool_call>", "\n", RIGHT, '{"a": ', "[", '"', "NaN", "1e999", "é"])))
def test_no_text_makes_them_raise(parts: list[str]) -> None:
    text = "".join(parts)
    json.dumps([call.arguments for call in bfcl_calls(text)], allow_nan=False)
    api_bank_match(text, WANTED)


@pytest.mark.parametrize("unit", ["<tool_call>", "[", '{"a":', "\n", f"{RIGHT}\n", '"\n'])
def test_they_take_linear_time(unit: str) -> None:
    def seconds(length: int) -> float:
        text, took = "<tool_call>" + unit * (length // len(unit)), []
        for _ in range(3):
            begun = time.process_time()
            list(bfcl_calls(text)), api_bank_match(text, ToolCall("g", {}))
            took.append(time.process_time() - begun)
        return min(took)

    assert seconds(40_000) < 40 * seconds(4_000) + 0.05
