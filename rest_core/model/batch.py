"""Rollouts as padded tensors, and their split into micro-batches by a token budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rest_core.records import Rollout


@dataclass
class Batch:
    """Rows [prompt | response]: prompts padded on the left, responses on the right, so that responses share columns."""

    input_ids: Tensor  # (B, P + T)
    attention_mask: Tensor  # (B, P + T) int64
    position_ids: Tensor  # (B, P + T)
    response_ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) bool: the sampled tokens, the only ones that reward, weights and loss see

    def to(self, device: torch.device | str) -> Batch:
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def make_batch(rollouts: Sequence[Rollout], pad_id: int) -> Batch:
    """One row a rollout, padded to the longest prompt and the longest response of these rollouts."""
    prompt_width = max(len(rollout.prompt_ids) for rollout in rollouts)
    width = max(1, *(len(rollout.response_ids) for rollout in rollouts))
    input_ids = torch.full((len(rollouts), prompt_width + width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, rollout in enumerate(rollouts):
        start, end = prompt_width - len(rollout.prompt_ids), prompt_width + len(rollout.response_ids)
        input_ids[row, start:end] = torch.tensor([*rollout.prompt_ids, *rollout.response_ids])
        attention_mask[row, start:end] = 1
    return Batch(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp_min(0),
        response_ids=input_ids[:, prompt_width:],
        mask=attention_mask[:, prompt_width:].bool(),
    )


def pad_rows(rows: Sequence[Tensor | Sequence[float]], width: int, dtype: torch.dtype, fill: float = 0) -> Tensor:
    """Rows of different lengths as one (B, width) tensor."""
    out = torch.full((len(rows), width), fill, dtype=dtype)
    for index, row in enumerate(rows):
        out[index, : len(row)] = torch.as_tensor(row, dtype=dtype)
    return out


def micro_batches(rollouts: Sequence[Rollout], indices: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Split `indices` so that rows times padded length stays within `budget`; at least one row each.

    Rows of like length go together, longest first, so that a budget that is too large fails at once.
    """
    order = sorted(indices, key=lambda n: (-len(rollouts[n].prompt_ids) - len(rollouts[n].response_ids), n))
    part: list[int] = []
    prompt_width = width = 0
    for n in order:
        wider = max(prompt_width, len(rollouts[n].prompt_ids)), max(width, len(rollouts[n].response_ids))
        if part and (len(part) + 1) * sum(wider) > budget:
            yield part
            part, wider = [], (len(rollouts[n].prompt_ids), len(rollouts[n].response_ids))
        part.append(n)
        prompt_width, width = wider
    if part:
        yield part
