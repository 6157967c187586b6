"""The formats of model families against transformers' `parse_response`, with TRL's descriptions of the templates."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import FAMILIES, tokenizer
from trl.chat_template_utils import add_response_schema

from rest_core.chat import opening, with_template
from rest_core.records import Tool, ToolCall
from rest_core.styles.native import NativeStyle

TOOL = Tool(
    "weather",
    "",
    {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "at": {"type": "array"}},
    },
)
CALL = ToolCall("weather", {"city": 'São "Tomé"', "days": 2, "at": [1, {"a": None}]})


TURNS: list[tuple[list[ToolCall], str | None]] = [
    ([CALL], None),
    ([CALL, CALL], None),
    ([], "It rains."),
    ([CALL], "Let me see."),
]
# TRL describes neither of the two; Llama's template, and so its description, has no place for several calls.
CASES = [
    (name, calls, words)
    for name in FAMILIES
    for calls, words in TURNS
    if name not in ("hermes", "mistral") and not (name.startswith("llama") and len(calls) > 1)
]


@pytest.mark.parametrize(("name", "calls", "words"), CASES)
def test_both_read_the_same(name: str, calls: list[ToolCall], words: str | None) -> None:
    made = add_response_schema(tokenizer(name))
    style = NativeStyle(made)
    schema = [{"type": "function", "function": {"name": TOOL.name, "description": "", "parameters": TOOL.parameters}}]
    text = style.write(think=None, calls=calls, response=words)
    prompt = with_template(
        made, [{"role": "user", "content": "?"}], tools=schema, tokenize=False, add_generation_prompt=True
    )
    said = text.removeprefix(opening(made).text) + made.eos_token
    theirs: Any = made.parse_response(said, prefix=prompt, tools=schema)
    called = [(call["function"]["name"], call["function"]["arguments"]) for call in theirs.get("tool_calls", ())]
    ours = style.parse(text, [TOOL])
    assert called == [(call.name, call.arguments) for call in ours.calls] == [(c.name, c.arguments) for c in calls]
    assert (theirs.get("content") or None) == ours.response
