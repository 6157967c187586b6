"""From messages to ids: the one place where text is encoded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from jinja2 import TemplateError

from rest_core.errors import UserError
from rest_core.records import Message


def encode_prompt(tokenizer: Any, prompt: Sequence[Message]) -> list[int]:
    """Ids of a chat up to where the assistant's turn begins.

    Raises:
        UserError: the model's chat template refuses these messages.
    """
    messages = [{"role": message.role, "content": message.content} for message in prompt]
    try:
        encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)
    except (ValueError, TemplateError) as error:  # no template at all, or one that refuses
        roles = ", ".join(message.role for message in prompt)
        raise UserError(
            f"the chat template of {tokenizer.name_or_path!r} refuses messages of the roles {roles} "
            f"({' '.join(str(error).split())}); choose a model whose template takes them"
        ) from None
    return list(encoded["input_ids"])


def encode_prompts(tokenizer: Any, prompts: Iterable[Sequence[Message]]) -> list[list[int]]:
    return [encode_prompt(tokenizer, prompt) for prompt in prompts]


def encode_response(tokenizer: Any, text: str) -> list[int]:
    """Ids of a reference response, end of sequence included (supervised training only)."""
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
