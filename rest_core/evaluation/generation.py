"""Answers to evaluation prompts: greedy decoding by any rollout engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rest_core.algorithm.regions import decode_response
from rest_core.chat import encode_prompts
from rest_core.config import GenerationConfig
from rest_core.evaluation.benchmark import Answer
from rest_core.records import Message
from rest_core.rollout.engine import Engine

Progress = Callable[[int, int], None]
"""Called with the number of prompts that are done so far, and the number of all prompts."""


def respond(
    engine: Engine,
    tokenizer: Any,
    prompts: Sequence[tuple[Message, ...]],
    config: GenerationConfig,
    on_progress: Progress | None = None,
) -> list[Answer]:
    """The most likely response (temperature 0) to every prompt, in the order of `prompts`.

    The tokenizer's chat template is applied once, to the whole prompt. A prompt longer than the limit is not cut: its
    answer is empty and says so in `skipped`, and the caller counts it as failed.
    """
    encoded = encode_prompts(tokenizer, prompts)
    fitting = [ids for ids in encoded if len(ids) <= config.max_prompt_tokens]
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
        text = decode_response(rollout.response_ids, tokenizer)
        return Answer(text, len(ids), len(rollout.response_ids), rollout.finished)

    advance(0)
    rollouts = iter(
        engine.generate(
            fitting,
            samples=1,
            max_new_tokens=config.max_response_tokens,
            temperature=0.0,
            batch_tokens=config.batch_tokens,
            on_progress=advance,
        )
        if fitting
        else ()
    )
    return [answer(ids) for ids in encoded]
