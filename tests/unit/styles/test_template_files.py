"""Prompt templates in files: those of the package, a user's own, and what is said of a wrong one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rest_core.config import PROMPT_STYLES, ModelConfig, validate
from rest_core.errors import UserError
from rest_core.records import Message, Tool, ToolCall
from rest_core.styles.create import built_in_style, create_style, training_style

TOOL = Tool("f", "Does é.", {"type": "object", "properties": {"x": {"type": "number"}}, "required": []})
DOCUMENT = {
    "name": "f",
    "description": "Does é.",
    "parameters": {"type": "dict", "properties": {"x": {"type": "float"}}},
}
OWN = """\
name: own
source: a paper
license: CC0
messages:
  - role: system
    content: "Tools: {% for tool in tools %}{{ tool.name }}{% endfor %}{% for note in notes %} {{ note }}{% endfor %}"
  - turns:
      user: "Q: {{ turn.content }}"
      assistant: "{{ turn.calls | json }}"
      tool: "{{ turn.call }} gave {{ turn.content }}"
      tool_role: user
format: hermes
"""


def write(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(text, encoding="utf-8")
    return f"file:{path}"


def style(folder: Path, text: str) -> Any:
    return create_style(ModelConfig(prompt_style=write(folder, text)), None)


def test_every_style_of_the_package_names_its_source_and_licence() -> None:
    assert PROMPT_STYLES == ("native", "compact", "toolrl", "toolrl-bfcl", "toolrl-bfcl-multi-turn")
    for name in PROMPT_STYLES[1:]:
        made = built_in_style(name)
        assert made.name == name
        assert (
            "license: Apache-2.0" in made.template and "source: https://github.com/qiancheng0/ToolRL" in made.template
        )


def test_a_file_says_how_prompts_look_and_responses_are_read(tmp_path: Path) -> None:
    made = style(tmp_path, OWN)
    assert made.name.startswith("own (sha256 ") and made.template == OWN
    calls = [ToolCall("f", {"x": 1}), ToolCall("f", {"x": "é"})]
    said = made.assistant_turn(calls, None)
    assert said.content.count("<tool_call>") == 2 and list(made.parse(said.content).calls) == calls
    history = [Message("system", "Note."), Message("user", "u"), said, Message("tool", "1"), Message("tool", "2")]
    assert made.render([TOOL], history) == (
        Message("system", "Tools: f Note."),
        Message("user", "Q: u"),
        Message("assistant", '[{"name": "f", "arguments": {"x": 1}}, {"name": "f", "arguments": {"x": "é"}}]'),
        Message("user", "f(x=1) gave 1"),
        Message("user", "f(x='é') gave 2"),
    )


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("name: own", "nome: own", "field name: field required"),
        ("license: CC0", "licence: CC0", "field licence: there is no such field"),
        ("format: hermes", "format: hermess", "format 'hermess'; did you mean 'hermes'"),
        ("role: system", "role: sytem", "field messages.0.role: "),
        ("tool_role: user", "tool_role: [1", "not valid YAML"),
        ("{{ tool.name }}", "{{ tool.name", r"field messages\[0\].content, line 1 of it: "),
        ("{% endfor %}{% for", "{% for", r"field messages\[0\].content, line 1 of it: "),
        ("for tool in tools", "for tool in toools", "no variable 'toools'; did you mean 'tools'"),
        ("{{ tool.name }}", "{{ tool.nam }}", r"field messages\[0\].content: .*nam"),
        ("turn.call }}", "turn.caller }}", r"field messages\[1\].turns: .*caller"),
        ("turn.calls | json", "turn.calls | jsn", "field messages.*jsn"),
        ("{{ turn.call }}", "{{ ''.__class__.__mro__ }}", "field messages.*unsafe"),
        ("  - turns:", "  - role: user\n    turns:", "give role and content, or turns"),
        (OWN, "- a\n", "a mapping of fields, not list"),
        (OWN, "a: [" * 2000, "nested too deeply"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_with_file_and_field(
    tmp_path: Path, old: str, new: str, error: str
) -> None:
    assert old in OWN
    with pytest.raises(UserError, match=error) as raised:
        style(tmp_path, OWN.replace(old, new))
    assert str(raised.value).startswith(f"{tmp_path}/own.yaml: ") and "\n" not in str(raised.value)


def test_a_text_that_fails_with_a_later_dialogue_is_refused_likewise(tmp_path: Path) -> None:
    made = style(tmp_path, OWN.replace("turn.calls | json", "turn.calls[0].name"))
    with pytest.raises(UserError, match=r"own.yaml: field messages\[1\].turns: ") as raised:
        made.render([TOOL], [Message("user", "u"), made.assistant_turn([], "No call.")])
    assert "\n" not in str(raised.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        create_style(ModelConfig(prompt_style=f"file:{tmp_path}/none.yaml"), None)
    with pytest.raises(UserError, match=r"m: prompt_style: no such style; did you mean 'toolrl'\? .*'toolrll'"):
        validate(ModelConfig, {"prompt_style": "toolrll"}, where="m")
    (tmp_path / "own.yaml").write_bytes(b"\xff")
    with pytest.raises(UserError, match="not UTF-8 text"):
        create_style(ModelConfig(prompt_style=f"file:{tmp_path}/own.yaml"), None)


def authors_prompt(documents: list[dict[str, Any]], messages: list[dict[str, str]], suffix: str) -> str:
    """The authors' user message, put together as their handler does it."""
    text = "**Dialogue Records History**\n"
    for n, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] == "user":
            text += f"<user> {content}\n{suffix} </user>\n"
        elif message["role"] == "tool":
            text += f"<obs> You have made the tool call {message['name']}. Execution returns: {content} </obs>\n"
            if n == len(messages) - 1:
                text += "\n<user> If you think you have completed the current task" + LAST + " </user>\n"
        elif message["role"] == "assistant":
            text += f"\n{content}\n"
    return text.strip()


LAST = (
    ", or the task cannot be finished, please respond directly without additional tool calls. If you encounter an "
    "error during tool execution or the task remains unfinished, retry with the one or more necessary tool calls "
    "according to your thought and plan until completion. Based on the tool execution feedback, reflect on if "
    "understanding or selectioin of tool is wrong, what tool calling step is missing, and how to achieve the task "
    "goal from now on."
)
SINGLE = (
    "If there's no appropriate tools to apply or required parameters are missing, please directly inform me in "
    "your response without any tool call, or call the tool with the name as 'None'. Otherwise, you should use one "
    "or more necessary tool calls to complete the given task in this turn."
)
MULTI = (
    "Use the one or more necessary tool calls to complete the task. You could perform tool calls for multiple "
    "rounds so you can try and error. Please make a comprehensive plan about how to achieve the goal step by step, "
    "and begin to call the tool step by step. If no tools apply or required parameters are missing, please also "
    "directly state this in your response without tool calls."
)


@pytest.mark.parametrize(("name", "suffix"), [("toolrl-bfcl", SINGLE), ("toolrl-bfcl-multi-turn", MULTI)])
def test_the_authors_condition_on_bfcl(name: str, suffix: str) -> None:
    made = built_in_style(name)
    call = ToolCall("f", {"x": 1})
    said = "<think> so </think>\n" + made.write(think=None, calls=[call, call], response=None)
    turns = [
        Message("user", " How much?\n"),
        Message("assistant", said),
        Message("tool", '{"y": 2}'),
        Message("tool", "3 "),
        Message("assistant", " <response> 5 </response>"),
        Message("user", "And?"),
    ]
    named = [
        {"role": turn.role, "content": turn.content} | ({"name": "f(x=1)"} if turn.role == "tool" else {})
        for turn in turns
    ]
    documents = (DOCUMENT, {**DOCUMENT, "name": "g", "parameters": {"type": "dict"}})
    for length in range(1, len(turns) + 1):
        history = [Message("system", "dropped"), *turns[:length]]
        system, user = made.render((TOOL,), history, documents)
        assert user == Message("user", authors_prompt([], named[:length], suffix))
    assert system.role == "system" and system.content.endswith("noted as `<obs>` (if exists).\n")
    shown = json.dumps({"x": {"type": "float"}})
    listed = (
        f"1. Name: f\nDescription: Does é.\nParameters: {shown}\n2. Name: g\nDescription: Does é.\nParameters: {{}}\n\n"
    )
    assert f"you can use the following tools:\n{listed}**Steps" in system.content
    plain = built_in_style("toolrl").render((TOOL,), [])[0].content
    assert plain.split("**Steps")[1] + "\n" == system.content.split("**Steps")[1]


def test_the_published_reading_is_for_evaluation() -> None:
    made = built_in_style("toolrl-bfcl")
    text = '<tool_call>\n{"name": "f", "parameters": {"x": 1}, "id": 3}\n{"name": "None", "parameters": {}}\njunk'
    assert made.parse(text).calls == (ToolCall("f", {"x": 1}),)
    with pytest.raises(UserError, match="for evaluation; train in another style"):
        training_style(ModelConfig(prompt_style="toolrl-bfcl"), None)


def test_texts_are_made_anew_for_other_tools_and_notes() -> None:
    made = built_in_style("compact")
    first, second = (TOOL,), (Tool("g", "", TOOL.parameters),)
    texts = {
        made.render(tools, [Message("system", note)])[0].content for tools in (first, second) for note in ("a", "b")
    }
    assert len(texts) == 4
    assert made.render(list(first), []) == made.render(first, [])
