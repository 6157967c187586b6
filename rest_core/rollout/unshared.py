"""Decoding with transformers' own cache, for models that the shared-prefix attention does not fit.

Each prompt is prefilled once; its cache is then copied for the samples of its group and grows at each step. Rows that
have ended leave once a quarter of the batch has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rest_core.rollout.decoding import Decoded
from rest_core.rollout.sampling import sample
from rest_core.rollout.shared_prefix import left_padded

COMPACT_SHARE = 0.75  # rows are dropped once at most this share of the batch is still going


def decode(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    draws: Tensor | None,
    stop: Tensor,
    pad_id: int,
) -> Decoded:
    """Responses to one batch of prompts; the arguments are those of `rest_core.rollout.decoding.decode`."""
    device = stop.device
    ids, mask, positions = left_padded(prompts, pad_id, device)
    attention = torch.ones_like(ids) if mask is None else mask
    output = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.reorder_cache(torch.arange(len(prompts), device=device).repeat_interleave(samples))
    logits = output.logits[:, -1].repeat_interleave(samples, dim=0)  # (B, V), B = P·G
    attention = attention.repeat_interleave(samples, dim=0)
    next_position = positions[:, -1:].repeat_interleave(samples, dim=0) + 1  # (B, 1)

    total = len(logits)
    rows = torch.arange(total, device=device)  # rows of the batch that are still computed
    ended = torch.zeros(total, dtype=torch.bool, device=device)  # of those
    result = Decoded(
        tokens=torch.zeros(total, max_new_tokens, dtype=torch.int64, device=device),
        logps=torch.zeros(total, max_new_tokens, device=device),
        entropies=torch.zeros(total, max_new_tokens, device=device),
    )
    for step in range(max_new_tokens):
        token, logp, entropy = sample(logits, temperature, None if draws is None else draws[rows, step])
        result.tokens[rows, step], result.logps[rows, step], result.entropies[rows, step] = token, logp, entropy
        ended = ended | torch.isin(token, stop) | logp.isnan()  # nothing follows from NaN
        left = int((~ended).sum())
        if left == 0 or step + 1 == max_new_tokens:
            break
        if left <= COMPACT_SHARE * len(rows):
            keep = (~ended).nonzero()[:, 0]
            cache.reorder_cache(keep)
            rows, ended, token = rows[keep], ended[keep], token[keep]
            attention, next_position = attention[keep], next_position[keep]
        attention = torch.cat([attention, torch.ones_like(attention[:, :1])], dim=1)
        output = model(
            input_ids=token[:, None],
            attention_mask=attention,
            position_ids=next_position,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
        next_position = next_position + 1
    return result
