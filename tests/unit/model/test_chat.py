from __future__ import annotations

import copy
from typing import Any

import pytest

from rest_core.errors import UserError
from rest_core.model.chat import encode_prompt, encode_prompts, encode_response
from rest_core.records import Message

PROMPT = (Message("system", "be brief"), Message("user", "hei ☃"))


def test_a_prompt_ends_where_the_answer_begins(tiny_tokenizer: Any) -> None:
    ids = encode_prompt(tiny_tokenizer, PROMPT)
    assert tiny_tokenizer.decode(ids) == (
        "<|start|>system\nbe brief<|end|>\n<|start|>user\nhei ☃<|end|>\n<|start|>assistant\n"
    )
    assert encode_prompts(tiny_tokenizer, [PROMPT, PROMPT[1:]]) == [ids, encode_prompt(tiny_tokenizer, PROMPT[1:])]


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
