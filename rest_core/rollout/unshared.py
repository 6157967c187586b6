"""Decoding with transformers' own cache, for models that the shared-prefix attention does not fit.

Each prompt is prefilled once; its cache is then copied for the samples of its group and grows at each step. Rows that
have ended leave once a quarter of the batch has.
"""

from __future__ import annotations

from typing import Any

import torch

from rest_core.rollout.decoding import Decoded, Task
from rest_core.rollout.prefill import left_padded
from rest_core.rollout.sampling import sample

COMPACT_SHARE = 0.75  # rows are dropped once at most this share of the batch is still going


def decode(model: Any, task: Task) -> Decoded:
    """Responses to the prompts of a task, all in one batch."""
    samples, max_new_tokens, draws, stop = task.samples, task.max_new_tokens, task.draws, task.stop
    device = stop.device
    ids, mask, positions = left_padded(task.prompts, task.pad_id, device)
    attention = torch.ones_like(ids) if mask is None else mask
    output = model(input_ids=ids, attention_mask=attention, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.reorder_cache(torch.arange(len(task.prompts), device=device).repeat_interleave(samples))
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
        token, logp, entropy = sample(logits, task.temperature, None if draws is None else draws[rows, step])
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
    task.on_ended(total)
    return result
