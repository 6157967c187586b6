from __future__ import annotations

from dataclasses import replace

import pytest

from rest_core.data.fields import Rejected
from rest_core.data.validate import problem
from rest_core.records import Message, Origin, Sample, Tool, ToolCall
from rest_core.response import parse
from rest_core.styles.create import built_in_style

TOOLRL = built_in_style("toolrl")
TOOL = Tool("Get Month ", "", {"type": "object", "properties": {"city": {}}, "required": ["city"]})
GOOD = Sample(
    "own/3",
    "own",
    TOOLRL.render([TOOL], [Message("user", "Hi")]),
    (TOOL,),
    TOOLRL.assistant_turn([ToolCall("Get  Month", {"city": "Oslo"})], None).content,
    Origin("data.jsonl: line 3", "prompt", "tools", "reference"),
)


def checked(sample: Sample) -> Rejected | None:
    return problem(sample, parse(sample.reference))


def calling(name: str, **arguments: object) -> str:
    return TOOLRL.assistant_turn([ToolCall(name, arguments)], None).content


def test_a_good_sample_has_no_problem_and_blanks_in_names_do_not_matter():
    assert checked(GOOD) is None
    assert checked(replace(GOOD, reference=TOOLRL.assistant_turn((), "Hello.").content)) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": (Message("system", "x"),)}, "question empty"),
        ({"prompt": (Message("user", " "),)}, "question empty"),
        ({"tools": ()}, "tools missing"),
        ({"reference": ""}, "reference not well formed"),
        ({"reference": "<think> x </think>"}, "reference not well formed"),
        ({"reference": calling("Get Month", city=float("nan"))}, "reference not well formed"),
        ({"reference": "<think> the <tool_call> tag </think>\n<response> x </response>"}, "reference not well formed"),
        ({"reference": calling("GetMonth", city="Oslo")}, "tool does not exist"),
        ({"reference": calling("Get Month", town="Oslo")}, "argument not declared by the tool"),
        ({"reference": TOOLRL.assistant_turn((), "\ud800").content}, "text is not valid Unicode"),
    ],
)
def test_each_problem_is_named_with_file_record_and_field(change: dict[str, object], reason: str):
    found = checked(replace(GOOD, **change))
    assert found is not None and found.reason == reason
    assert found.where.startswith("data.jsonl: line 3: field ")


def test_a_sample_that_was_read_is_named_by_its_record_and_fields():
    origin = Origin("calls.jsonl: line 7", "messages", "functions", "messages[3]", ("messages[3].tool_calls[0]",))
    for change, field in (
        ({"prompt": (Message("user", " "),)}, "messages"),
        ({"tools": ()}, "functions"),
        ({"reference": "<think> x </think>"}, "messages[3]"),
        ({"reference": calling("Get Month", town="Oslo")}, "messages[3].tool_calls[0]"),
        ({"tools": (replace(TOOL, description="\ud800"),)}, "functions"),
        ({"tools": (replace(TOOL, parameters={**TOOL.parameters, "default": "\ud800"}),)}, "functions"),
    ):
        found = checked(replace(GOOD, origin=origin, **change))
        assert found is not None and found.where == f"calls.jsonl: line 7: field {field!r}"


def test_a_tool_that_takes_further_arguments_may_get_them():
    tool = replace(TOOL, parameters={**TOOL.parameters, "additionalProperties": True})
    assert checked(replace(GOOD, tools=(tool,), reference=calling("Get Month", town="Oslo"))) is None
