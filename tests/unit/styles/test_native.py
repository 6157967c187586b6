"""The native style, held against the families' own chat templates."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import FAMILIES, tokenizer

from rest_core.chat import encode_prompt, encode_response, encode_sample, opening
from rest_core.config import ModelConfig
from rest_core.errors import UserError
from rest_core.records import Message, Sample, Tool, ToolCall
from rest_core.response import TAGGED, parse
from rest_core.styles.create import create_style
from rest_core.styles.native import NativeStyle

WEATHER = Tool(
    "get_weather",
    "Weather in a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "exact": {"type": "boolean"},
            "places": {"type": "array"},
        },
        "required": ["city"],
    },
)
TOOLS = (WEATHER, Tool("now", "The time.", {"type": "object", "properties": {}, "required": []}))
CALL = ToolCall("get_weather", {"city": 'São "Tomé"', "days": 2, "exact": True, "places": ["a", {"b": None}]})
NOW = ToolCall("now", {})
ONE_CALL = ("llama3_1", "llama3_2")  # whose templates refuse turns with several


def spelled(made: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    text: str = made.apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024", **options)
    return text


def schemas() -> list[dict[str, Any]]:
    return [
        {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
        for t in TOOLS
    ]


def turn(calls: list[ToolCall], words: str | None, first_id: int = 0) -> dict[str, Any]:
    made: dict[str, Any] = {"role": "assistant", "content": words or ""}
    if calls:
        made["tool_calls"] = [
            {
                "id": f"call{n:05d}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for n, call in enumerate(calls, start=first_id)
        ]
    return made


@pytest.mark.parametrize(("name", "family"), FAMILIES.items())
def test_the_family_is_that_of_the_chat_template(name: str, family: str) -> None:
    style = NativeStyle(tokenizer(name))
    assert style.format.dialect.name == family
    assert style.name == f"native, tool parser {family}" and tokenizer(name).chat_template in style.template


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    ("calls", "words"), [([CALL], None), ([CALL, NOW], None), ([], "It rains."), ([NOW], "Let me see.")]
)
def test_a_reference_is_what_the_chat_template_makes_of_the_turn(
    name: str, calls: list[ToolCall], words: str | None
) -> None:
    made = tokenizer(name)
    style = NativeStyle(made)
    written = style.write(think=None, calls=calls, response=words)
    read = style.parse(written, TOOLS)
    assert list(read.calls) == calls and read.well_formed, read.problems
    if name in ONE_CALL and (len(calls) > 1 or (calls and words)):
        assert read.response is None  # no template to compare with, or one that drops the words
        return
    assert read.response == words
    asked = [{"role": "user", "content": "How is it?"}]
    prompt = spelled(made, asked, tools=schemas(), add_generation_prompt=True)
    whole = spelled(made, [*asked, turn(calls, words)], tools=schemas())
    assert prompt.endswith(opening(made).text)
    assert whole.startswith(prompt.removesuffix(opening(made).text) + written + made.eos_token)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_history_is_put_as_the_chat_template_wants_it(name: str) -> None:
    made = tokenizer(name)
    style = NativeStyle(made)
    calls = [CALL] if name in ONE_CALL else [CALL, NOW]
    history = [
        Message("system", "Be brief."),
        Message("user", "How is it?"),
        style.assistant_turn(calls, None),
        *(Message("tool", f"result {n}") for n in range(len(calls))),
        style.assistant_turn([], "It rains."),
        Message("user", "And now?"),
    ]
    prompt = style.render(TOOLS, history)
    assert prompt == tuple(history)
    ids = encode_prompt(made, prompt, style, TOOLS)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How is it?"},
        turn(calls, None),
        *(
            {"role": "tool", "content": f"result {n}", "tool_call_id": f"call{n:05d}", "name": call.name}
            for n, call in enumerate(calls)
        ),
        turn([], "It rains."),
        {"role": "user", "content": "And now?"},
    ]
    if opening(made).text or name.startswith("qwen3"):
        messages[-2]["reasoning_content"] = messages[2]["reasoning_content"] = ""
    assert made.decode(ids) == spelled(made, messages, tools=schemas(), add_generation_prompt=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_half_of_a_surrogate_pair_in_an_earlier_call_becomes_a_character(name: str) -> None:
    made = tokenizer(name)
    style = NativeStyle(made)
    said = style.write(think=None, calls=[ToolCall("get_weather", {"city": "HALF"})], response=None)
    half = "\ud800" if FAMILIES[name] == "qwen3_coder" else "\\ud800"  # the others have escapes
    history = [Message("user", "u"), Message("assistant", said.replace("HALF", half)), Message("tool", "\ud800")]
    assert made.decode(encode_prompt(made, history, style, TOOLS)).count("\ufffd") == 2


@pytest.mark.parametrize("name", ONE_CALL)
def test_several_calls_of_a_turn_become_turns_where_the_template_takes_one(name: str) -> None:
    made = tokenizer(name)
    style = NativeStyle(made)
    turns = [style.assistant_turn([CALL, NOW], None), Message("tool", "result 0"), Message("tool", "result 1")]
    ids = encode_prompt(made, [Message("user", "u"), *turns], style, TOOLS)
    messages = [
        {"role": "user", "content": "u"},
        turn([CALL], None),
        {"role": "tool", "content": "result 0"},
        turn([NOW], None),
        {"role": "tool", "content": "result 1"},
    ]
    assert made.decode(ids) == spelled(made, messages, tools=schemas(), add_generation_prompt=True)


def test_system_messages_become_one() -> None:
    style = NativeStyle(tokenizer("qwen2_5"))
    history = [Message("system", "A."), Message("user", "u"), Message("system", "B.")]
    assert style.render(TOOLS, history) == (Message("system", "A.\n\nB."), Message("user", "u"))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_8", "qwen2_5"])
def test_thoughts_are_written_and_kept(name: str) -> None:
    made = tokenizer(name)
    style = NativeStyle(made)
    written = style.write(think="Rain?", calls=[CALL], response=None)
    assert written.startswith("<think>\nRain?\n</think>\n") and written.count("<tool_call>\n") == 1
    read = style.parse(written, TOOLS)
    assert read.think == "Rain?" and read.well_formed and read.calls == (CALL,)
    messages, _ = style.chat_input([Message("user", "?"), Message("assistant", written)], TOOLS)
    if name == "qwen2_5":  # its template has no place for them
        assert messages[1]["content"].startswith("<think>\nRain?\n</think>") and "reasoning_content" not in messages[1]
    else:
        assert (messages[1]["reasoning_content"], messages[1]["content"]) == ("Rain?", "")


def test_thinking_is_switched_by_a_setting() -> None:
    made = tokenizer("qwen3")
    made.template_variables = {"enable_thinking": False}
    style = NativeStyle(made)
    assert opening(made).no_thoughts
    written = style.write(think="dropped", calls=[CALL], response=None)
    assert written.startswith("<tool_call>\n") and style.parse(written).well_formed
    ids = encode_prompt(made, [Message("user", "u")], style, TOOLS)
    assert made.decode(ids).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert made.decode(encode_response(made, written)[:-1]) == written


def test_what_the_template_opens_is_not_learnt_again() -> None:
    made = tokenizer("qwen3_5_think")
    style = NativeStyle(made)
    reference = style.write(think="Rain?", calls=[NOW], response=None)
    sample = Sample("s", "s", (Message("user", "u"),), TOOLS, reference)
    prompt, response = encode_sample(made, sample, style)
    assert made.decode(prompt).endswith("<|im_start|>assistant\n<think>\n")
    assert made.decode(response[:-1]) == reference.removeprefix("<think>\n")


@pytest.mark.parametrize(
    ("template", "parser", "error"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "auto", "takes no tools"),
        ("{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}", "auto", "set model.tool_parser"),
    ],
)
def test_templates_that_cannot_be_used(template: str, parser: str, error: str) -> None:
    made = tokenizer("qwen2_5")
    made.chat_template = template
    with pytest.raises(UserError, match=error):
        NativeStyle(made, parser)


def test_the_parser_is_a_setting() -> None:
    made = tokenizer("qwen2_5")
    style = create_style(ModelConfig(prompt_style="native", tool_parser="pythonic"), made)
    assert style.parse("[now()]").calls == (NOW,)


def test_a_turn_that_is_no_call_stays_as_it_was() -> None:
    style = NativeStyle(tokenizer("qwen2_5"))
    said = 'Hm <tool_call>{"name": broken'
    messages, _ = style.chat_input([Message("assistant", said)], TOOLS)
    assert messages == [{"role": "assistant", "content": said}]
    assert style.parse(said).dialect is not TAGGED and parse(said).dialect is TAGGED


def test_dates_in_prompts_do_not_follow_the_clock() -> None:
    made = tokenizer("llama3_2")
    style = NativeStyle(made)
    text = made.decode(encode_prompt(made, [Message("user", "u")], style, TOOLS))
    assert "Today Date: 26 Jul 2024" in text
