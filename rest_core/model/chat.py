"""From messages to ids: the one place where text is encoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rest_core.records import Message


def encode_prompt(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """Ids of a chat up to where the assistant's turn begins."""
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    return list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"])


def encode_prompts(tokenizer: Any, prompts: Iterable[Sequence[Message]]) -> list[list[int]]:
    return [encode_prompt(tokenizer, prompt) for prompt in prompts]


def encode_response(tokenizer: Any, text: str) -> list[int]:
    """Ids of a reference response, end of sequence included (supervised training only)."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
