"""A model behind a rollout engine of this project."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_core.algorithm.regions import decode_response
from rest_core.chat import encode_prompts
from rest_core.config import GenerationConfig
from rest_core.data import prompts
from rest_core.evaluation.policy import Answer, Chat, Progress
from rest_core.rollout.engine import Engine


class LocalPolicy:
    """`rest_core.evaluation.policy.Policy` on an engine; the tokenizer's chat template is applied once, to the whole
    prompt."""

    def __init__(self, name: str, engine: Engine, tokenizer: Any, style: prompts.Style) -> None:
        self.name, self.engine, self.tokenizer, self.style = name, engine, tokenizer, style
        self.condition = f"prompt style {style}"
        self.template = prompts.template_text(style)
        self.native_tools = False

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        """See `rest_core.evaluation.policy.Policy`."""
        messages = [chat.prompt or prompts.render(self.style, chat.tools, chat.history) for chat in chats]
        encoded = encode_prompts(self.tokenizer, messages)
        fitting = [ids for ids in encoded if len(ids) <= config.max_prompt_tokens]
        pairs = zip(chats, encoded, strict=True)
        seeds = [chat.seed for chat, ids in pairs if len(ids) <= config.max_prompt_tokens]
        done = len(encoded) - len(fitting)

        def advance(completed: int) -> None:
            nonlocal done
            done += completed
            if on_progress is not None:
                on_progress(done, len(encoded))

        def answer(ids: list[int]) -> Answer:
            if len(ids) > config.max_prompt_tokens:
                reason = f"prompt of {len(ids)} tokens is over the limit of {config.max_prompt_tokens}"
                return Answer("", len(ids), 0, finished=False, skipped=reason)
            rollout = next(rollouts)[0]
            text = decode_response(rollout.response_ids, self.tokenizer)
            return Answer(text, len(ids), len(rollout.response_ids), rollout.finished)

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
            )
            if fitting
            else ()
        )
        return [answer(ids) for ids in encoded]
