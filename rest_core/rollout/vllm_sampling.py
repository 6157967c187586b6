"""What both ways of running vLLM share: what is asked of it, and what is accepted from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rest_core.errors import UserError
from rest_core.records import Rollout
from rest_core.seeds import derive

VERSION = "0.32"  # of vLLM: token ids in and out, and weight versions in the answers, are there from this one on
_FLOOR = -9999.0  # what vLLM writes in place of a log-prob of -inf or NaN


@dataclass(frozen=True)
class Vocabulary:
    """What is known of the policy's ids: how many there are, and which end a response."""

    size: int
    stop_ids: frozenset[int]


def sampling(
    vocabulary: Vocabulary, samples: int, max_new_tokens: int, temperature: float, seed: int | None
) -> dict[str, Any]:
    """vLLM's `SamplingParams` for one prompt: the policy's own distribution, nothing that would cut or bend it.

    With n > 1 vLLM gives sample k the seed `seed + k`; the seed is drawn anew from ours to be below 2^62, so that the
    sum stays a 64-bit number.
    """
    return {
        "n": samples,
        "temperature": temperature,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "max_tokens": max_new_tokens,
        "seed": None if seed is None else derive(seed, "vllm") >> 1,
        "stop_token_ids": sorted(vocabulary.stop_ids),
        "ignore_eos": True,  # what ends a response is said above, whatever the server's tokenizer has
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }


def accept(
    prompt: Sequence[int],
    ids: Sequence[int],
    logps: Sequence[float],
    *,
    vocabulary: Vocabulary,
    max_new_tokens: int,
    version: int,
    where: str,
) -> Rollout:
    """A rollout of what vLLM sampled, checked: these numbers go into the gradient.

    Raises:
        UserError: ids or log-probs that the policy cannot have given; `where` says who gave them.
    """
    if len(logps) != len(ids):
        raise UserError(f"{where}: {len(ids)} ids came with {len(logps)} log-probs; use vLLM {VERSION} or later")
    if not ids or len(ids) > max_new_tokens:
        raise UserError(f"{where}: a response of {len(ids)} tokens, asked for 1 to {max_new_tokens}")
    for token, logp in zip(ids, logps, strict=True):
        if not 0 <= token < vocabulary.size:
            raise UserError(
                f"{where}: id {token} is outside the policy's vocabulary of {vocabulary.size}; serve the policy that "
                "is trained"
            )
        if not math.isfinite(logp) or logp <= _FLOOR:
            raise UserError(
                f"{where}: the log-prob of id {token} is not a finite number; the served weights are broken or too "
                "large for the compute type: lower rl.learning_rate, or set model.dtype=float32"
            )
    ends = [place for place, token in enumerate(ids) if token in vocabulary.stop_ids]
    if ends and ends[0] + 1 < len(ids):
        raise UserError(f"{where}: a response went on after the stop id {ids[ends[0]]}; use vLLM {VERSION} or later")
    if not ends and len(ids) < max_new_tokens:
        raise UserError(
            f"{where}: a response ended after {len(ids)} of {max_new_tokens} tokens without a stop id; serve a longer "
            "context (--max-model-len: prompt and response together), and no stop words or other limits"
        )
    return Rollout(
        prompt_ids=list(prompt),
        response_ids=list(ids),
        logps=[min(float(logp), 0.0) for logp in logps],
        finished=bool(ends),
        policy_version=version,
    )
