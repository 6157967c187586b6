"""Whatever a record holds, a reader gives samples and rejections; and its time grows with the record's length only."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rest_core import response
from rest_core.data import files, readers
from rest_core.data.dialogues import Verbatim
from rest_core.data.fields import Record, Rejected, Unreadable
from rest_core.data.prompts import listed_tools, user_turns
from rest_core.data.python_calls import NotCalls, literal, read_calls
from rest_core.data.readers import chat, tool_lists
from rest_core.data.taken_apart import dialogue_of
from rest_core.data.tools import read_tool
from rest_core.data.validate import problem
from rest_core.data.written_calls import split
from rest_core.errors import UserError
from rest_core.records import Message, Sample, Tool
from rest_core.styles.create import built_in_style

TOOL = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {"a": {}}}}

words = st.sampled_from(
    ["", " ", "hi", "null", "[]", "{}", "[{", '{"a": 1}', '"x"', "f", "f(a=1)", "[f(a=1)]", "<think>x</think>y",
     '<tool_call>{"name": "f", "arguments": {}}</tool_call>', "<tools>", "<tools>[]</tools>", "[TOOL_CALLS]", "\ud800",
     '{"name": "f", "arguments": {"a": 1}}', "<functioncall> {'name': 'f'}", "<tool_response>x", json.dumps([TOOL]),
     "USER: x\n\nASSISTANT: y", "user", "assistant", "system", "tool", "function_call", "human", "gpt", "int, optional"]
)  # fmt: skip
keys = st.sampled_from(
    ["role", "content", "from", "value", "tool_calls", "function", "name", "arguments", "parameters", "properties",
     "required", "type", "items", "description", "calls", "response", "think", "reasoning", "text", "function_call",
     "$defs", "$ref", "anyOf", "enum", "default", "a"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
roles = st.sampled_from(["user", "human", "assistant", "gpt", "tool", "function_call", "tool_call", "system"])
turns = st.lists(
    st.fixed_dictionaries({}, optional={"role": roles, "from": roles, "content": values | words, "value": values,
                                        "tool_calls": values, "function_call": values, "reasoning": values}),
    max_size=4,
)  # fmt: skip
tools = st.just([TOOL]) | st.just(json.dumps([TOOL])) | values
FIELDS = {
    "jsonl": {"messages": turns | values, "target": values | st.none()},
    "sharegpt": {"conversations": turns | values, "system": values},
    "toolace": {"conversations": turns | values, "system": words},
    "trl": {"prompt": turns | words, "completion": turns | values},
    "glaive": {"chat": words | values, "system": words},
    "xlam": {"query": words | values, "answers": values},
    "bfcl-retired": {"question": st.lists(turns, max_size=2) | values, "ground_truth": values, "function": tools},
    "toolrl-rl": {"prompt": turns | values, "reward_model": values},
    "toolrl-sft": {"instruction": words, "input": words | values, "output": values},
}


def test_every_format_is_tried():
    assert set(FIELDS) == set(readers.READERS)


@pytest.mark.parametrize("format", readers.READERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_only_samples_and_rejections_come_out(format: str, data: st.DataObject):
    fields = data.draw(st.fixed_dictionaries(FIELDS[format], optional={"tools": tools, "functions": values}))
    record = Record(fields, "f.jsonl: line 1", "f-1")
    for entry in readers.samples_of(
        [record], format, built_in_style(data.draw(st.sampled_from(["compact", "toolrl"])))
    ):
        assert isinstance(entry, Sample | Rejected)
        where = entry.where if isinstance(entry, Rejected) else entry.origin.where  # type: ignore[union-attr]
        assert where.startswith("f.jsonl: line 1")
        if isinstance(entry, Sample) and problem(entry, response.parse(entry.reference)) is None:
            assert response.parse(entry.reference).well_formed
            json.dumps([tool.parameters for tool in entry.tools]).encode()


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(keys, values, max_size=5) | st.fixed_dictionaries({"a": st.fixed_dictionaries({"type": words})}))
def test_parameters_are_always_a_valid_json_schema(parameters: dict[str, Any]):
    try:
        tool = read_tool({"name": "f", "parameters": parameters})
    except Unreadable:
        return
    jsonschema.Draft202012Validator.check_schema(tool.parameters)
    assert tool.parameters["type"] == "object" and isinstance(tool.parameters["properties"], dict)


def longest(make: Callable[[int], Callable[[], object]], size: int) -> float:
    """Seconds for an input of `size` characters, the best of three."""

    def once() -> float:
        run = make(size)
        start = time.process_time()
        with contextlib.suppress(Unreadable, NotCalls):
            run()
        return time.process_time() - start

    return min(once() for _ in range(3))


PARSED = (Tool("f", "", TOOL["parameters"]),)  # type: ignore[arg-type]
HOSTILE: dict[str, Callable[[int], Callable[[], object]]] = {
    "blanks before an argument": lambda n: lambda: split(f"[f({' ' * n}x)]", PARSED),
    "opened calls": lambda n: lambda: split("<tool_call>" * (n // 11), PARSED),
    "opened calls with Python": lambda n: lambda: split("<tool_call>[1]" * (n // 14), PARSED),
    "opened brackets": lambda n: lambda: split("[f(" * (n // 3), PARSED),
    "brackets and blanks": lambda n: lambda: split("[ " * (n // 2), PARSED),
    "opened objects": lambda n: lambda: split('{"name": "f", "arguments": ' * (n // 27), PARSED),
    "quotes in Glaive's call": lambda n: lambda: split('<functioncall>{"name": "f", "arguments": ' + "' " * n, PARSED),
    "blanks": lambda n: lambda: split('<tool_call>{"name": "f"}' + " " * n + "x", PARSED),
    "lists in a system text": lambda n: lambda: tool_lists.tools_in_text("[{" * (n // 2), "system"),
    "opened <tools>": lambda n: lambda: tool_lists.tools_in_text("<tools></tools>" * (n // 15), "system"),
    "lists of ToolRL": lambda n: lambda: listed_tools("following tools:\n" * (n // 17)),
    "opened user turns": lambda n: lambda: user_turns([Message("user", "<user>" * (n // 6))]),
    "a tag that does not end": lambda n: lambda: split("<" + "a" * n, PARSED),
    "tags that do not end": lambda n: lambda: split("<a" * (n // 2), PARSED),
    "results": lambda n: lambda: chat.split_results("<tool_response>" * (n // 15), "m"),
    "dicts in Python": lambda n: lambda: split("{'name': " * (n // 9), PARSED),
    "thoughts": lambda n: lambda: chat.assistant({"content": "<think>" * (n // 7)}, "m", PARSED),
    "history": lambda n: lambda: dialogue_of(verbatim("<user><</user>" * (n // 14))),
    "tools and calls": lambda n: called("[" + "f(a=1)," * (n // 16) + "]", [f"g{k}" for k in range(n // 16)]),
    "large numbers": lambda n: lambda: literal("*".join(["0x" + "f" * 2000] * (n // 2000))),
    "turns": lambda n: turns_of('{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, ', n),
    "types": lambda n: lambda: read_tool({"name": "f", "parameters": {"a": {"type": "List[" * (n // 5)}}}),
}  # fmt: skip


def verbatim(text: str) -> Verbatim:
    return Verbatim((Message("user", text),), PARSED, "<response> b </response>", "prompt", "tools", "answer")


def called(text: str, names: list[str]) -> Callable[[], object]:
    tools = [Tool(name, "", {"type": "object", "properties": {}}) for name in names]
    return lambda: read_calls(text, tools)


def turns_of(pair: str, size: int) -> Callable[[], object]:
    fields = {"messages": json.loads(f"[{(pair * (20 * size // len(pair)))[:-2]}]"), "tools": [TOOL]}
    record = Record(fields, "f.jsonl: line 1", "f-1")
    return lambda: list(readers.samples_of([record], "jsonl", built_in_style("compact")))


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_length_only(name: str):
    assert longest(HOSTILE[name], 80_000) < 8 * longest(HOSTILE[name], 20_000) + 0.1


def test_references_that_double_do_not_grow():
    defs: dict[str, Any] = {
        f"D{n}": {"type": "object", "properties": {x: {"$ref": f"#/$defs/D{n + 1}"} for x in "ab"}} for n in range(60)
    }
    tool = read_tool(
        {"name": "f", "parameters": {"type": "object", "properties": {"a": {"$ref": "#/$defs/D0"}}, "$defs": defs}}
    )
    assert len(built_in_style("compact").render([tool], [])[0].content) < 10_000


def test_roots_that_refer_to_each_other_end():
    defs = {"A": {"$ref": "#/$defs/B"}, "B": {"$ref": "#/$defs/A"}}
    with pytest.raises(Unreadable, match="parameters are no JSON schema"):
        read_tool({"name": "f", "parameters": {"$ref": "#/$defs/A", "$defs": defs}})


HUGE = 100_000
ODD: dict[str, Any] = {
    "a tool's name": {"messages": [{"role": "user", "content": "q"},
                                   {"role": "assistant", "tool_calls": [{"name": "x" * HUGE}]}], "tools": [TOOL]},
    "a field": {"k" * HUGE: 1},
    "a field that no file can hold": {"\ud800": 1},
    "a property": {"messages": [], "tools": [{"name": "f", "parameters": {"p" * HUGE: 3}}]},
    "a thousand tools": {"messages": [{"role": "user", "content": "q"},
                                      {"role": "assistant", "tool_calls": [{"name": "g"}]}],
                         "tools": [{"name": f"tool number {n}"} for n in range(1000)]},
    "lines in a tool list": {"instruction": "**Available Tools**\nyou can use the following tools:\n1. Name: f\n"
                                            "Description: d\nParam: {\n\n**Steps for Each Turn**\n1. Think.",
                             "input": "<user> q </user>", "output": "<response> r </response>"},
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_messages_are_short_and_every_file_can_hold_them(name: str):
    (entry,) = readers.samples_of(
        [Record(ODD[name], "f.jsonl: line 1", "f-1")], readers.AUTO, built_in_style("compact")
    )
    rejected = problem(entry, response.parse(entry.reference)) if isinstance(entry, Sample) else entry
    assert isinstance(rejected, Rejected)
    assert str(rejected).startswith("f.jsonl: line 1") and len(str(rejected)) < 1500 and "\n" not in str(rejected)
    str(rejected).encode("utf-8")


def test_a_file_name_that_no_report_can_hold_is_refused(tmp_path: Any):
    path = tmp_path / os.fsdecode(b"a\xff.jsonl")
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="name is not UTF-8; rename it"):
        files.records(path)


def test_every_drop_of_an_unreadable_parquet_row_is_its_own(tmp_path: Any):
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array([b"fine", b"\xff\xfe", b"fine too"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    first, bad, last = files.records(tmp_path / "a.parquet")
    assert isinstance(first, Record) and isinstance(last, Record) and last.fields == {"text": "fine too"}
    assert isinstance(bad, Rejected) and bad.where.endswith("a.parquet: record 1")


@pytest.mark.parametrize(
    "text", ["{'a': 1+2j}", "{'a': {1, 2}}", "{'a': b'x'}", "{'a': 0x" + "f" * 5000 + "}", "9" * 4301]
)
def test_values_that_json_has_not_are_no_literals(text: str) -> None:
    with pytest.raises(NotCalls, match="is no literal"):
        literal(text)


def test_moments_that_no_calendar_has_are_rejected_row_by_row(tmp_path: Any):
    import pyarrow
    import pyarrow.parquet

    moments = pyarrow.array([0, 2**60, 1], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"at": moments}), tmp_path / "a.parquet")
    first, bad, last = files.records(tmp_path / "a.parquet")
    assert isinstance(first, Record) and isinstance(last, Record)
    assert isinstance(bad, Rejected) and bad.where.endswith("a.parquet: record 1")


def test_a_schema_with_half_a_character_is_rejected() -> None:
    tool = {"name": "f", "parameters": {"type": "object", "properties": {"a": {"description": "\ud800"}}}}
    call = {"name": "f", "arguments": {}}
    fields = {"messages": [{"role": "user", "content": "q"}], "tools": [tool], "target": {"calls": [call]}}
    (entry,) = readers.samples_of([Record(fields, "f.jsonl: line 1", "f-1")], "jsonl", built_in_style("compact"))
    assert isinstance(entry, Sample)
    rejected = problem(entry, response.parse(entry.reference))
    assert rejected is not None and rejected.reason == "text is not valid Unicode"
