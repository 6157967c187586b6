from __future__ import annotations

import copy
from typing import Any

import pytest

from rest_core.chat import Opening, encode_prompt, encode_response, encode_sample, opening
from rest_core.errors import UserError
from rest_core.records import Message, Sample, ToolCall
from rest_core.response import render

PROMPT = (Message("system", "be brief"), Message("user", "hei ☃"))


def test_a_prompt_ends_where_the_answer_begins(tiny_tokenizer: Any) -> None:
    ids = encode_prompt(tiny_tokenizer, PROMPT)
    assert tiny_tokenizer.decode(ids) == (
        "<|start|>system\nbe brief<|end|>\n<|start|>user\nhei ☃<|end|>\n<|start|>assistant\n"
    )


def test_a_response_ends_with_the_end_and_begins_with_nothing(tiny_tokenizer: Any) -> None:
    ids = encode_response(tiny_tokenizer, "<response> hei </response>")
    assert ids[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.decode(ids[:-1]) == "<response> hei </response>"
    assert len(ids) == 8  # two tags, five bytes, the end


def test_a_template_that_refuses_a_role_is_the_users_to_mend(tiny_tokenizer: Any) -> None:
    strict = copy.deepcopy(tiny_tokenizer)
    strict.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UserError, match=r"roles system, user .System role not supported"):
        encode_prompt(strict, PROMPT)


REFERENCE = render(think="go", calls=[ToolCall("f", {"a": 1})], response=None)
SAYS = '<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>'


def with_end(tokenizer: Any, end: str) -> Any:
    """A tokenizer whose chat template ends every prompt in `end`."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = made.chat_template.replace("assistant\n{% endif %}", f"assistant\n{end}{{% endif %}}")
    return made


@pytest.mark.parametrize(
    ("end", "text", "no_thoughts"),
    [
        ("", "", False),
        ("<think>\n", "<think>\n", False),
        ("<think>", "<think>", False),
        ("<think>\n\n</think>\n\n", "", True),
        ("<think></think>", "", True),
        ("thinking: <|start|>", "", False),
    ],
)
def test_what_a_template_opens(tiny_tokenizer: Any, end: str, text: str, no_thoughts: bool) -> None:
    assert opening(with_end(tiny_tokenizer, end)) == Opening(text, no_thoughts)


@pytest.mark.parametrize(
    "end", ["<tool_call>\n", "<think>\n<tool_call>", "<response>", "</think>\n", "<think><think>", "<think>\nOkay, "]
)
def test_other_tags_at_the_end_of_a_prompt_are_refused(tiny_tokenizer: Any, end: str) -> None:
    with pytest.raises(UserError, match=r"ends the prompt in '.*choose another chat template or another model") as told:
        opening(with_end(tiny_tokenizer, end))
    assert repr(end)[1:] in str(told.value)


def test_a_template_that_is_changed_is_looked_at_again(tiny_tokenizer: Any) -> None:
    made = with_end(tiny_tokenizer, "<think>\n")
    assert opening(made).text == "<think>\n"
    made.chat_template = tiny_tokenizer.chat_template
    assert opening(made) == Opening()
    made.chat_template = None
    assert opening(made) == Opening()


def test_a_template_that_takes_no_system_message_and_begins_with_a_mark(tiny_tokenizer: Any) -> None:
    made = with_end(tiny_tokenizer, "<think>\n")
    made.chat_template = (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + made.chat_template
    )
    assert opening(made).text == "<think>\n"


def test_tags_that_a_user_writes_open_nothing(tiny_tokenizer: Any) -> None:
    chat = (Message("user", "think first: <think>\n"),)
    encode_prompt(tiny_tokenizer, chat)
    made = copy.deepcopy(tiny_tokenizer)
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"  # opens no turn
    assert encode_prompt(made, chat)[-1] == made.eos_token_id


def test_a_template_that_opens_by_the_messages_is_refused(tiny_tokenizer: Any) -> None:
    """As DeepSeek-R1's own, which opens nothing behind the result of a tool."""
    made = with_end(tiny_tokenizer, "{% if messages[-1]['role'] != 'tool' %}<think>\n{% endif %}")
    assert tiny_tokenizer.decode(encode_prompt(made, PROMPT)).endswith("assistant\n<think>\n")
    with pytest.raises(
        UserError, match=r"opens nothing after messages of the roles user, tool, and '<think>\\n' after"
    ):
        encode_prompt(made, (Message("user", "u"), Message("tool", "t")))
    made = with_end(tiny_tokenizer, "{% if messages[-1]['role'] != 'tool' %}<think></think>{% endif %}")
    with pytest.raises(UserError, match=r"opens nothing after messages .*, and an empty think block after others"):
        encode_prompt(made, (Message("user", "u"), Message("tool", "t")))


@pytest.mark.parametrize(
    ("end", "reference", "said"),
    [
        ("", REFERENCE, REFERENCE),
        ("<think>\n", REFERENCE, f"go </think>\n{SAYS}"),
        ("<think>", REFERENCE, f" go </think>\n{SAYS}"),
        ("<think>\n", f"\n<think>\n\n go </think>{SAYS}", f"go </think>{SAYS}"),
        ("<think>\n\n</think>\n\n", SAYS, SAYS),
    ],
)
def test_a_reference_goes_on_from_the_prompt(tiny_tokenizer: Any, end: str, reference: str, said: str) -> None:
    made = with_end(tiny_tokenizer, end)
    assert made.decode(encode_response(made, reference)) == f"{said}<|end|>"
    whole = made.decode([*encode_prompt(made, PROMPT), *encode_response(made, reference)])
    assert whole.count("<think>") == 1 if "<think>" in end + reference else "<think>" not in whole


@pytest.mark.parametrize(
    ("end", "reference", "message"),
    [
        ("<think>\n", SAYS, r"opens <think> in the prompt, and the reference '<tool_call>.*…' does not begin with it"),
        ("<think>\n\n</think>\n\n", REFERENCE, r"an empty think block, and the reference '<think> go .*has thoughts"),
    ],
)
def test_references_that_cannot_go_on_are_refused(tiny_tokenizer: Any, end: str, reference: str, message: str) -> None:
    made = with_end(tiny_tokenizer, end)
    with pytest.raises(UserError, match=message):
        encode_response(made, reference)
    sample = Sample("own/0", "own", PROMPT, (), reference)
    with pytest.raises(UserError, match=f"sample own/0: .*{message}"):
        encode_sample(made, sample)
    encode_sample(tiny_tokenizer, sample)
