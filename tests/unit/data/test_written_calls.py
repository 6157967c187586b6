from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.data.fields import Unreadable
from rest_core.data.python_calls import NotCalls
from rest_core.data.written_calls import Parts, arguments_of, call_of, calls_of, split
from rest_core.records import Tool, ToolCall

TOOLS = [Tool(name, "", {"type": "object", "properties": {"a": {}}, "required": []}) for name in ("f", "My Tool (old)")]
ONE = ToolCall("f", {"a": 1})
JSON = '{"name": "f", "arguments": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hello.", Parts("Hello.")),
        ("", Parts("")),
        (f"<tool_call>\n{JSON}\n</tool_call>", Parts("", (ONE,))),
        (f"Now.\n<tool_call>{JSON}</tool_call>\n<tool_call>{JSON}</tool_call>", Parts("Now.", (ONE, ONE))),
        (f"<tool_call>\n{JSON}\n{JSON}\n</tool_call>", Parts("", (ONE, ONE))),
        ("<tool_call>{'name': 'f', 'arguments': {'a': 1}}</tool_call>", Parts("", (ONE,))),
        (f"<TOOLCALL>[{JSON}]</TOOLCALL> Done.", Parts("Done.", (ONE,))),
        ("<TOOLCALL>[]</TOOLCALL>", Parts("", no_call=True)),
        ("[]", Parts("", no_call=True)),
        (f"[TOOL_CALLS][{JSON}]", Parts("", (ONE,))),
        (f"[TOOL_CALLS] [{JSON}]</s>", Parts("", (ONE,))),
        (f"<tool_call>{JSON}", Parts("", (ONE,))),
        (f"functools[{JSON}]", Parts("", (ONE,))),
        ('<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', Parts("", (ONE,))),
        ("""<functioncall> {"name": "f", "arguments": '{"a": 1}'} <|endoftext|>""", Parts("", (ONE,))),
        ("""<functioncall> {"name": "f", "arguments": '{"a": "it's"}'}""", Parts("", (ToolCall("f", {"a": "it's"}),))),
        (JSON, Parts("", (ONE,))),
        (f"[{JSON}, {JSON}]", Parts("", (ONE, ONE))),
        (f"Here:\n```json\n{JSON}\n```", Parts("Here:", (ONE,))),
        ('{"type": "function", "function": {"name": "f", "arguments": "{\\"a\\": 1}"}}', Parts("", (ONE,))),
        ("[f(a=1)]", Parts("", (ONE,))),
        ("[g(a=1)]", Parts("", (ToolCall("g", {"a": 1}),))),  # that there is no g is for validation to find
        ("One moment. [f(a=1), My Tool (old)(a=2)]", Parts("One moment.", (ONE, ToolCall("My Tool (old)", {"a": 2})))),
        ("f(a=1)", Parts("", (ONE,))),
        ("```python\nf(a=1)\n```", Parts("", (ONE,))),
        ('<tool_call>{"name": "f", "arguments": {"a": "</tool_call>"}}</tool_call>',
         Parts("", (ToolCall("f", {"a": "</tool_call>"}),))),
        # Words, however much they look like code.
        ('It is {"temperature": 4}, see [1] (or [2]).', Parts('It is {"temperature": 4}, see [1] (or [2]).')),
        ('{"name": "Ada", "age": 36}', Parts('{"name": "Ada", "age": 36}')),
        ("[see the note (below)]", Parts("[see the note (below)]")),
    ],
)  # fmt: skip
def test_text_and_calls_are_taken_apart(text: str, parts: Parts):
    assert split(text, TOOLS) == parts


@pytest.mark.parametrize(
    "text",
    [
        f"<tool_call>{JSON[:-4]}",
        f"<tool_call>{JSON} and more",
        f"[TOOL_CALLS][{JSON}] and that is it",
        f"I call {JSON} now",
        "[f(a=b)]",
        "I call [f(a=1)] now",
        "<tool_call>f</tool_call>",
        '<tool_call>{"arguments": {}}</tool_call>',
        "<function=f><parameter=a>1</parameter></function>",
        "Action: f\nAction Input: {}",
        "f(a=b)",
    ],
)
def test_what_looks_like_a_call_is_read_as_a_whole_or_refused(text: str):
    with pytest.raises(NotCalls):
        split(text, TOOLS)


@pytest.mark.parametrize(
    ("value", "arguments"),
    [
        (None, {}), ("", {}), (" ", {}), ("null", {}), ('""', {}), ([], {}), ("[]", {}), ("{}", {}), ({}, {}),
        ({"a": None}, {"a": None}), ('{"a": null}', {"a": None}), ("{'a': True}", {"a": True}),
        ('"{\\"a\\": 1}"', {"a": 1}),
    ],
)  # fmt: skip
def test_arguments(value: object, arguments: dict[str, object]):
    assert arguments_of(value, "arguments") == arguments


@pytest.mark.parametrize("value", ["{", "a=1", 3, [1], "[1]", '"text"', True])
def test_what_is_no_arguments(value: object):
    with pytest.raises(Unreadable) as caught:
        arguments_of(value, "arguments")
    assert caught.value.field == "arguments"


def test_a_call_names_what_it_lacks():
    for fields, field in (({}, "c.name"), ({"name": " "}, "c.name"), ({"function": {"name": 3}}, "c.function.name")):
        with pytest.raises(Unreadable) as caught:
            call_of(fields, "c")
        assert caught.value.field == field


def test_a_field_that_holds_calls():
    assert calls_of(JSON, "x") == calls_of([JSON], "x") == calls_of(json.loads(JSON), "x") == [ONE]
    assert calls_of("[]", "x") == calls_of([], "x") == []
    for value in (None, "", "Hello", 3, [3]):
        with pytest.raises(Unreadable):
            calls_of(value, "x")


@given(st.text(alphabet="[](){}<>=\"',:f a1/|_tol_call\n", max_size=80))
def test_no_text_does_worse_than_not_calls(text: str):
    try:
        parts = split(text, TOOLS)
    except NotCalls:
        return
    assert parts.calls or parts.no_call or parts.text == text.strip()
