"""Seconds of one decode step of our engine at a large batch, against the least that its memory traffic takes.

Two rollouts of the same prompts, a short and a long one: their difference holds decode steps alone, since both start
with the same prefill.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from rest_core.rollout.transformers_engine import TransformersEngine

from .flops import ceiling, count_parameters, decode_bytes, kv_bytes_per_token
from .measure import Clock
from .models import model_of, tokenizer_of
from .statistics import spread
from .work import Work, conversations, encode


def measure(spec: dict[str, Any], device: torch.device, *, progress: Callable[[str], None]) -> dict[str, Any]:
    """`spec["work"]` is the long rollout; the short one has `spec["short"]` tokens."""
    work, short = Work(**spec["work"]), int(spec["short"])
    tokenizer = tokenizer_of(spec["model"], spec["tokenizer"])
    prompts = [encode(tokenizer, messages) for messages in conversations(tokenizer, work)]
    model = model_of(spec["model"], tokenizer).to(device)
    parameters = count_parameters(model)
    engine = TransformersEngine.copy_of(
        model, dtype=torch.bfloat16, stop_ids=frozenset(), pad_id=tokenizer.pad_token_id
    )
    config = model.config
    del model
    clock = Clock(device)

    def seconds(new_tokens: int) -> float:
        begin = clock.now()
        made = engine.generate(
            prompts,
            samples=work.group,
            max_new_tokens=new_tokens,
            batch_tokens=2 * work.copied,  # all in one batch, with room for padding
            seeds=list(range(len(prompts))),
        )
        taken = clock.now() - begin
        if sum(len(rollout.response_ids) for group in made for rollout in group) != work.responses * new_tokens:
            raise RuntimeError("a response ended early")
        return taken

    samples = []
    for number in range(spec["measured"] + 1):  # the first is warm-up
        before, after = seconds(short), seconds(work.new_tokens)
        each = (after - before) / (work.new_tokens - short)
        progress(f"decode: {each * 1e3:.2f} ms a step at batch {work.responses}" + (" (warm-up)" if not number else ""))
        if number:
            samples.append(each)
    limit = ceiling(device)
    # The steps that are timed start with short .. new_tokens - 1 sampled tokens in the cache.
    sampled = statistics.mean((short, work.new_tokens - 1))
    kv = kv_bytes_per_token(config)
    least = decode_bytes(parameters, kv, rows=work.responses, cached=work.prompt_tokens + sampled)
    shared = work.prompts * work.prompt_tokens + work.responses * sampled
    least_shared = decode_bytes(parameters, kv, rows=1, cached=shared)
    floor = least / limit.bandwidth
    return {
        "batch": work.responses,
        "work": work.to_dict(),
        "seconds": spread(samples).to_dict(),
        "samples": samples,
        "floor_seconds": floor,
        "floor_seconds_prompts_once": least_shared / limit.bandwidth,
        "over_floor": statistics.median(samples) / floor,
        "ceiling": limit.to_dict(),
    }
