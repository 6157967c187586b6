"""A model behind a rollout engine of this project."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from rest_core.algorithm.regions import decode_response
from rest_core.chat import encode_prompt
from rest_core.config import GenerationConfig
from rest_core.evaluation.policy import Answer, Chat, Progress
from rest_core.response import Response, parse
from rest_core.rollout.engine import Engine
from rest_core.rollout.prefix_tree import together
from rest_core.styles.style import Style


class LocalPolicy:
    """`rest_core.evaluation.policy.Policy` on an engine; the tokenizer's chat template is applied once, to the whole
    prompt.

    Args:
        context: tokens that the model can see, prompt and response together; a prompt that leaves no room for the
            longest response is skipped. None where it has no limit of its own.
    """

    def __init__(self, name: str, engine: Engine, tokenizer: Any, style: Style, context: int | None = None) -> None:
        self.name, self.engine, self.tokenizer, self.style = name, engine, tokenizer, style
        self.context = context
        self.condition = f"prompt style {style.name}"
        self.template = style.template
        self.native_tools, self.keeps_prompts = style.native_tools, style.keeps_prompts

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        """See `rest_core.evaluation.policy.Policy`."""
        encoded = [self._encode(chat) for chat in chats]
        limit, why = self._longest_prompt(config)
        fitting = [ids for ids in encoded if len(ids) <= limit]
        seeds = [chat.seed for chat, ids in zip(chats, encoded, strict=True) if len(ids) <= limit]
        done = len(encoded) - len(fitting)

        def advance(completed: int) -> None:
            nonlocal done
            done += completed
            if on_progress is not None:
                on_progress(done, len(encoded))

        def answer(chat: Chat, ids: list[int]) -> Answer:
            if len(ids) > limit:
                reason = f"prompt of {len(ids)} tokens is over the limit of {limit}{why}"
                return Answer("", len(ids), 0, finished=False, skipped=reason)
            rollout = next(rollouts)[0]
            text = decode_response(rollout.response_ids, self.tokenizer)
            return Answer(text, len(ids), len(rollout.response_ids), rollout.finished, read=self.reader(chat))

        advance(0)
        rollouts = iter(
            self.engine.generate(
                fitting,
                samples=1,
                max_new_tokens=config.max_response_tokens,
                temperature=config.temperature,
                batch_tokens=config.batch_tokens,
                seeds=seeds,
                on_progress=advance,
                continued=any(chat.continues for chat in chats),
            )
            if fitting
            else ()
        )
        return [answer(chat, ids) for chat, ids in zip(chats, encoded, strict=True)]

    def together(self, chats: Iterable[Chat], config: GenerationConfig) -> int:
        """See `rest_core.evaluation.policy.KeepsPrompts`."""
        tokens = getattr(self.engine, "kept_tokens", None)
        if tokens is None:
            return sum(1 for _ in chats)
        # Numbers below 0 are no tokens: no two responses have anything in common.
        encoded = ([*self._encode(chat), *[-n] * config.max_response_tokens] for n, chat in enumerate(chats, start=1))
        return together(encoded, tokens)

    def _longest_prompt(self, config: GenerationConfig) -> tuple[int, str]:
        """In tokens, and why it is fewer than configured."""
        room = None if self.context is None else self.context - config.max_response_tokens
        if room is None or room >= config.max_prompt_tokens:
            return config.max_prompt_tokens, ""
        return room, f" (the model's {self.context} without {config.max_response_tokens} for the response)"

    def reader(self, chat: Chat) -> Callable[[str], Response]:
        """See `Policy.reader`. A benchmark's own prompt asks for the project's own response format."""
        if chat.prompt is not None and self.keeps_prompts:
            return parse
        return partial(self.style.parse, tools=chat.tools)

    def _encode(self, chat: Chat) -> list[int]:
        if chat.prompt is not None and self.keeps_prompts:
            return encode_prompt(self.tokenizer, chat.prompt)
        prompt = self.style.render(chat.tools, chat.history, chat.documents)
        return encode_prompt(self.tokenizer, prompt, self.style, chat.tools)
