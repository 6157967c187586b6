from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rest_core.data import files
from rest_core.data.fields import Record, Unreadable
from rest_core.data.prompts import listed_tools, user_turns
from rest_core.records import Message, Tool
from rest_core.styles.create import built_in_style

TOOL = Tool(
    "weather",
    "Weather of a city",
    {"type": "object", "properties": {"city": {"type": "string"}, "unit": {"type": "string"}}, "required": ["city"]},
)


def toolrl_prompts(folder: Path) -> list[tuple[str, str]]:
    """System and user text of every record in ToolRL's files."""
    found = []
    for record in files.records(folder / "rlla_sft.json"):
        assert isinstance(record, Record)
        found.append((record.fields["instruction"], record.fields["input"]))
    for record in files.records(folder / "rlla_test.parquet"):
        assert isinstance(record, Record)
        system, user = record.fields["prompt"]
        found.append((system["content"], user["content"]))
    return found


def history_of(user: str) -> list[Message]:
    """ToolRL's user message taken apart into the turns it was made of."""
    body = user.removeprefix("**Dialogue Records History**\n")
    turns = []
    for block in re.split(r"\n\n(?=<user>|<think>)", body):
        if block.startswith("<user>"):
            turns.append(Message("user", block.removeprefix("<user> ").removesuffix(" </user>")))
            continue
        said, _, observed = block.partition("\n<obs> ")
        turns.append(Message("assistant", said))
        if observed:
            turns.append(Message("tool", observed.removesuffix(" </obs>")))
    return turns


def test_toolrl_style_reproduces_every_prompt_of_toolrl(toolrl_folder: Path):
    pairs = toolrl_prompts(toolrl_folder)
    assert len(pairs) == 480
    assert sum("<obs>" in user for _, user in pairs) > 20  # multi-turn histories are among them
    assert sum("\\u" in system for system, _ in pairs) == 8  # where ours has the characters themselves
    for system, user in pairs:
        tools = listed_tools(system)
        rendered = built_in_style("toolrl").render(tools, history_of(user))
        plain = re.sub(r"\\u([0-9a-f]{4})", lambda match: chr(int(match[1], 16)), system)
        assert rendered == (Message("system", plain), Message("user", user))
        assert listed_tools(rendered[0].content) == tools


def test_api_bank_tools_are_listed_in_both_of_its_notations(api_bank_folder: Path):
    named = declared = 0
    for level in (1, 2, 3):
        for record in files.records(api_bank_folder / f"level-{level}-api_processed.json"):
            assert isinstance(record, Record)
            tools = {tool.name: tool for tool in listed_tools(record.fields["system"])}
            answer = record.fields["answer"]
            call = answer[0] if isinstance(answer, list) else answer
            if tool := tools.get(call["name"]):
                named += 1
                declared += set(call["parameters"]) <= set(tool.parameters["properties"])
    assert named == 597 - 6  # six answers of level 2 name a tool that their prompt does not list
    assert declared == named - 8  # eight of level 1 say device_id where the tool has name


def test_list_with_numbered_lines_inside_a_description():
    system = built_in_style("toolrl").render(
        [Tool("BookHotel", "Books.\n1. Only one room.\n2. If: two", TOOL.parameters), TOOL], []
    )[0]
    assert [tool.name for tool in listed_tools(system.content)] == ["BookHotel", "weather"]


def test_short_notation_and_python_parameters():
    listing = "1. QueryMeeting: The details.\nParameters: {'user': {'type': 'str'}}"
    (tool,) = listed_tools(f"following tools:\n{listing}\n\n**Steps for Each Turn**")
    assert (tool.name, tool.description) == ("QueryMeeting", "The details.")
    assert tool.parameters["properties"] == {"user": {"type": "str"}}


@pytest.mark.parametrize(
    "listing",
    ["1. Name: f\nDescription: d", "nothing", "1. Name: f\nDescription: d\nParameters: {", "1. f: d\nParameters: 3"],
)
def test_a_list_that_cannot_be_read_is_refused(listing: str):
    with pytest.raises(Unreadable):
        listed_tools(f"following tools:\n{listing}\n\n**Steps for Each Turn**")


def test_compact_style_has_one_json_line_a_tool_and_keeps_the_turns():
    history = [Message("user", "Oslo?"), Message("assistant", "…"), Message("tool", "4 °C"), Message("user", "Rome?")]
    system, *turns = built_in_style("compact").render([TOOL, TOOL], history)
    assert turns == history
    lines = system.content.splitlines()[-2:]
    assert json.loads(lines[0]) == {
        "name": "weather",
        "description": "Weather of a city",
        "parameters": TOOL.parameters["properties"],
        "optional": ["unit"],
    }


@pytest.mark.parametrize("style", ["toolrl", "compact"])
def test_system_messages_of_the_data_follow_the_instructions(style: str):
    plain = built_in_style(style).render([TOOL], [Message("user", "Hi")])
    given = built_in_style(style).render([TOOL], [Message("system", "Be brief."), Message("user", "Hi")])
    assert given == (Message("system", plain[0].content + "\n\nBe brief."), *plain[1:])


@pytest.mark.parametrize("style", ["toolrl", "compact"])
def test_user_turns_are_found_in_either_style(style: str):
    history = [Message("user", "Oslo?"), Message("assistant", "<response> 4 </response>"), Message("user", "Rome?")]
    assert user_turns(built_in_style(style).render([TOOL], history)) == ["Oslo?", "Rome?"]


def test_braces_in_a_tool_are_not_taken_for_the_template():
    tool = Tool("f", "writes {tools} and {name}", TOOL.parameters)
    assert built_in_style("compact").render([tool], [])[0].content.count("writes {tools} and {name}") == 1
