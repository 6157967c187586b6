"""The chat template of a trained checkpoint: the same prompts as the style's own, byte for byte."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES
from chat_templates import tokenizer as family_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from rest_core.chat import with_template
from rest_core.config import ModelConfig
from rest_core.errors import UserError
from rest_core.records import Message, Tool, ToolCall
from rest_core.styles.chat_template import chat_template, own_template, style_of, variables_of, written_by
from rest_core.styles.create import built_in_style, create_style
from rest_core.styles.style import Style
from rest_core.styles.template_style import TemplateStyle

STYLES = ("compact", "toolrl")
WEATHER = Tool(
    "get_weather",
    'The weather "now".\n  - ü, {{ x }} {% y %}',
    {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "<b>\\n"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)
NO_ARGUMENTS = Tool("now", "", {"type": "object", "properties": {}, "required": []})
REFERS = Tool(
    "find",
    "With a definition.",
    {
        "type": "object",
        "properties": {"items": {"$ref": "#/$defs/x"}, "keys": {"type": "array"}},
        "required": [],
        "$defs": {"x": {"type": "string"}},
    },
)
TOOLS = (WEATHER, NO_ARGUMENTS, REFERS)
CALLS = (ToolCall("get_weather", {"city": 'Os"lo ü\n', "days": 2}), ToolCall("now", {}))
Turn = Message | tuple[tuple[ToolCall, ...], str | None, str | None]  # an assistant's: calls, words, thoughts
DIALOGUES: tuple[tuple[Turn, ...], ...] = (
    (Message("user", "How warm is it?"),),
    (Message("system", "A note.\n"), Message("system", "Another."), Message("user", "  Hi\n\n there  ")),
    (
        Message("user", "How warm?"),
        (CALLS, None, None),
        Message("tool", '{"warm": 3}'),
        Message("tool", "12:00"),
        ((), "It is 3.", "I know."),
        Message("user", "And <tool_call> in words?"),
        (CALLS[1:], "I look.", "Think {{ again }}"),
        Message("tool", ""),
    ),
)


def schemas(tools: tuple[Tool, ...]) -> list[dict[str, Any]] | None:
    made = [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in tools
    ]
    return made or None


def of_api(dialogue: tuple[Turn, ...], number: int = 0) -> list[dict[str, Any]]:
    """The dialogue as a client of a chat API has it."""
    made: list[dict[str, Any]] = []
    for turn in dialogue:
        if isinstance(turn, Message):
            made.append({"role": turn.role, "content": turn.content})
            continue
        calls, words, thoughts = turn
        entry: dict[str, Any] = {"role": "assistant", "content": words}
        if thoughts is not None:
            entry["reasoning_content"] = thoughts
        if calls:
            entry["tool_calls"] = [
                {"id": f"c{n}", "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
                for n, call in enumerate(calls)
            ]
        made.append(entry)
    return made


def of_style(style: Style, dialogue: tuple[Turn, ...]) -> list[Message]:
    return [turn if isinstance(turn, Message) else style.assistant_turn(turn[0], turn[1], turn[2]) for turn in dialogue]


def both(made: Any, style: Style, tools: tuple[Tool, ...], dialogue: tuple[Turn, ...]) -> tuple[str, str]:
    """The prompt by the style, and by the checkpoint's chat template."""
    messages, variables = style.chat_input(style.render(tools, of_style(style, dialogue)), tools)
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    wanted = with_template(made, messages, **options, **variables)
    served = copy.deepcopy(made)
    served.chat_template = chat_template(style, made.chat_template, {})
    return wanted, served.apply_chat_template(of_api(dialogue), tools=schemas(tools), **options)


@pytest.mark.parametrize("dialogue", DIALOGUES)
@pytest.mark.parametrize("tools", [TOOLS, TOOLS[1:2], ()])
@pytest.mark.parametrize("name", STYLES)
def test_built_in_styles_on_a_plain_template(
    tiny_tokenizer: Any, name: str, tools: tuple[Tool, ...], dialogue: tuple[Turn, ...]
) -> None:
    wanted, got = both(tiny_tokenizer, built_in_style(name), tools, dialogue)
    assert got == wanted


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", STYLES)
def test_built_in_styles_on_the_templates_of_model_families(family: str, name: str) -> None:
    wanted, got = both(family_tokenizer(family), built_in_style(name), TOOLS, DIALOGUES[0])
    assert got == wanted  # their own lists of tools stay out


_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=40)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXTS, inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.text("abcdefghijklmnopqrstuvwxyz_.-", min_size=1, max_size=12)


@st.composite
def _tools(draw: st.DrawFn) -> Tool:
    properties = draw(st.dictionaries(_TEXTS, st.dictionaries(_TEXTS, _VALUES, max_size=3), max_size=4))
    required = [name for name in properties if draw(st.booleans())]
    parameters = {"type": "object", "properties": properties, "required": required}
    return Tool(draw(_NAMES), draw(_TEXTS), parameters)


@settings(deadline=None, max_examples=60)
@given(
    tools=st.lists(_tools(), max_size=3).map(tuple),
    said=_TEXTS,
    arguments=st.dictionaries(_TEXTS, _VALUES, max_size=3),
    result=_TEXTS,
    name=st.sampled_from(STYLES),
)
def test_any_tools_words_and_values(
    tiny_tokenizer: Any, tools: tuple[Tool, ...], said: str, arguments: dict[str, Any], result: str, name: str
) -> None:
    call = ToolCall("f", arguments)
    dialogue = (Message("user", said), ((call,), None, None), Message("tool", result))
    wanted, got = both(tiny_tokenizer, built_in_style(name), tools, dialogue)
    assert got == wanted


_FILE = """
name: mine
messages:
  - role: system
    content: |
      {%- raw %} {{ raw }} {% endraw -%}
      {# gone #}  {% for tool in tools -%}
        {{ loop.index }}. {{ tool.name | upper }}: {{ tool.parameters | json_ascii }}{% if loop.last %} !{% endif %}
        {{ tool.brief.parameters | json_compact }}
      {% endfor %}
      {{ notes | join("|") | json }}
  - turns:
      user: "\\n  <u> {{ turn.content | trim }} </u>\\n"
      assistant: "{{ turn.think }} / {{ turn.words }} / {{ turn.calls | json_compact }}\\n"
      tool_role: user
  - role: user
    content: "{{ turns | length }} turns, é\\t"
format: FORMAT
"""


@pytest.mark.parametrize("written", ["tagged", "hermes"])
def test_a_file_of_a_users_own(tiny_tokenizer: Any, tmp_path: Path, written: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(_FILE.replace("FORMAT", written), encoding="utf-8")
    thoughtful = (
        Message("user", " How warm? "),
        (CALLS, "I look.", "Thoughts."),
        Message("tool", "3 é"),
        Message("tool", "4"),
        ((), "It is 3.", "More."),
        Message("user", "Thanks"),
    )
    wanted, got = both(tiny_tokenizer, TemplateStyle(path), TOOLS, thoughtful)
    assert got == wanted


def test_raw_responses_of_clients_without_a_parser_stay_as_they_are(tiny_tokenizer: Any) -> None:
    style = built_in_style("compact")
    raw = style.write(think="T", calls=CALLS, response=None)
    served = copy.deepcopy(tiny_tokenizer)
    served.chat_template = chat_template(style, tiny_tokenizer.chat_template, {})
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": raw}]
    assert f"assistant\n{raw}<|end|>" in served.apply_chat_template(messages, tools=schemas(TOOLS), tokenize=False)


def test_arguments_as_text_and_reasoning_by_its_newer_name(tiny_tokenizer: Any) -> None:
    style = built_in_style("compact")
    served = copy.deepcopy(tiny_tokenizer)
    served.chat_template = chat_template(style, tiny_tokenizer.chat_template, {})
    call = {"type": "function", "function": {"name": "now", "arguments": '{"a": 1}'}}
    turn = {"role": "assistant", "reasoning": "R", "content": "", "tool_calls": [call]}
    text = served.apply_chat_template([{"role": "user", "content": "?"}, turn], tokenize=False)
    assert '<think> R </think>\n<tool_call>\n{"name": "now", "parameters": {"a": 1}}\n</tool_call>' in text


def test_it_comes_off_again(tiny_tokenizer: Any) -> None:
    own = "\n  " + tiny_tokenizer.chat_template
    made = chat_template(built_in_style("toolrl"), own, {})
    assert made != own and own_template(made) == own and own_template(own) == own


def test_it_says_how_the_checkpoint_was_trained(tiny_tokenizer: Any) -> None:
    made = chat_template(built_in_style("toolrl"), tiny_tokenizer.chat_template, {"enable_thinking": False, "d": "x"})
    assert (style_of(made), variables_of(made)) == ("toolrl", {"enable_thinking": False, "d": "x"})
    assert (style_of("{# x #}"), variables_of("{# x #}")) == (None, {})


def test_contents_in_parts_are_texts(tiny_tokenizer: Any) -> None:
    """vLLM hands contents over as parts where a template seems to want that."""
    served = copy.deepcopy(tiny_tokenizer)
    served.chat_template = chat_template(built_in_style("toolrl"), tiny_tokenizer.chat_template, {})
    dialogue = of_api(DIALOGUES[2])
    parts = [
        turn | ({"content": [{"type": "text", "text": turn["content"]}]} if turn["content"] else {})
        for turn in dialogue
    ]
    options: dict[str, Any] = {"tools": schemas(TOOLS), "tokenize": False}
    assert served.apply_chat_template(parts, **options) == served.apply_chat_template(dialogue, **options)


_ODD = "name: odd\nmessages: [{role: system, content: '{{ tools | tojson }}'}, {turns: {}}]\n"


def test_a_template_that_a_checkpoint_would_write_otherwise_is_refused(tiny_tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "odd.yaml").write_text(_ODD, encoding="utf-8")
    with pytest.raises(UserError, match="it writes an example otherwise than the style does"):
        written_by(TemplateStyle(tmp_path / "odd.yaml"), tiny_tokenizer)
    several = copy.deepcopy(tiny_tokenizer)
    several.chat_template = {"default": tiny_tokenizer.chat_template}
    with pytest.raises(UserError, match="the tokenizer has several"):
        written_by(built_in_style("compact"), several)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_example_holds_for_every_style(family: str) -> None:
    made = family_tokenizer(family)
    assert own_template(written_by(create_style(ModelConfig(prompt_style="native"), made), made)) == made.chat_template


@pytest.mark.parametrize("family", FAMILIES)
def test_native_styles_keep_the_models_own_template(family: str) -> None:
    made = family_tokenizer(family)
    style = create_style(ModelConfig(prompt_style="native"), made)
    changed = chat_template(style, made.chat_template, {"enable_thinking": False})
    assert changed.endswith(made.chat_template) and own_template(changed) == made.chat_template
    served = copy.deepcopy(made)
    served.chat_template = changed
    options: dict[str, Any] = {"tools": schemas(TOOLS[:1]), "add_generation_prompt": True, "tokenize": False}
    messages = [{"role": "user", "content": "?"}]
    wanted = made.apply_chat_template(messages, enable_thinking=False, **style.variables, **options)
    assert served.apply_chat_template(messages, **options) == wanted
    assert served.apply_chat_template(messages, enable_thinking=True, **options) == made.apply_chat_template(
        messages, enable_thinking=True, **style.variables, **options
    )


def test_what_no_chat_template_can_write_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reads `turn\.call`, which chat templates cannot"):
        chat_template(built_in_style("toolrl-bfcl-multi-turn"), "", {})
    path = tmp_path / "mine.yaml"
    path.write_text("name: x\nmessages: [{turns: {}}]\nformat: mistral\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write turns in the format 'mistral'"):
        chat_template(TemplateStyle(path), "", {})
