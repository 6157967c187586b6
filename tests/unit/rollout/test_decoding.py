"""What a CUDA graph of a decode step rests on: the step works in place, in memory that stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rest_core.model.attention import implementation
from rest_core.rollout.decoding import Batch, Task
from rest_core.rollout.prefill import prefill
from rest_core.rollout.shared_prefix import IMPLEMENTATION, Size

PROMPTS = [[11, 12, 13, 14, 15], [5, 6, 7], [21]]


@pytest.fixture
def batch(random_model: Callable[..., Any]) -> Any:
    model = random_model("qwen3", head_dim=8)
    task = Task(
        PROMPTS,
        samples=2,
        max_new_tokens=10,
        temperature=1.0,
        draws=torch.rand(6, 10, generator=torch.Generator().manual_seed(0)),
        stop=torch.tensor([1]),
        pad_id=0,
        budget=1000,
    )
    with torch.no_grad(), implementation(model, IMPLEMENTATION):
        made = Batch(model, task)
        for numbers, prefilled in prefill(model, PROMPTS, pad_id=0, tokens_at_once=10):
            made.join(numbers, prefilled, Size(prompts=3, width=5, rows=6, columns=4))
        yield made


def places(batch: Batch) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Address and shape of every tensor of a batch and its cache."""

    def tensors(prefix: str, owner: Any) -> dict[str, Tensor]:
        return {f"{prefix}.{name}": value for name, value in vars(owner).items() if isinstance(value, Tensor)}

    assert batch.cache is not None
    found = tensors("batch", batch) | tensors("cache", batch.cache)
    for n, layer in enumerate(batch.cache.own_layers):
        found |= tensors(f"layer {n}", layer)
    return {name: (value.data_ptr(), tuple(value.shape)) for name, value in found.items()}


def test_a_step_moves_nothing(batch: Batch) -> None:
    before = places(batch)
    assert {"batch.tokens", "batch.token", "cache.bias", "layer 1.keys", "layer 0.prompt_values"} <= set(before)
    batch.step()
    batch.step()
    assert places(batch) == before
    batch.cache.see(8)
    assert places(batch) != before


def test_a_step_depends_on_tensors_alone(batch: Batch) -> None:
    """Set back by copies into the same memory it gives the same again, as a replayed graph must."""
    state = [batch.token, batch.positions, batch.drawn, batch.ended, batch.cache.tokens, batch.cache.bias]
    batch.step()
    saved = [tensor.clone() for tensor in state]
    batch.step()
    batch.step()
    wanted = batch.tokens[:, :4].clone()
    for tensor, value in zip(state, saved, strict=True):
        tensor.copy_(value)
    batch.tokens[:, 2:] = -1
    batch.step()
    batch.step()
    assert torch.equal(batch.tokens[:, :4], wanted)


def test_prompts_without_rows_leave_the_cache(batch: Batch) -> None:
    cache = batch.cache
    kept = [cache.between(row, 0, cache.lengths[cache.prompt_of_row[row]]) for row in (2, 5)]
    batch.keep(2, vacated=[0, 1], movers=[2, 5], block=4)  # rows of prompts 0 0 1 1 2 2
    assert batch.responses == [2, 5] and sorted(cache.lengths) == [1, 3]
    assert (len(cache.own_layers[0].prompt_keys), cache.width) == (2, 3)  # two prompts, as wide as the longest
    assert cache.row.shape == (2, 1)  # two prompts, one row each
    for row, layers in enumerate(kept):
        again = cache.between(row, 0, cache.lengths[cache.prompt_of_row[row]])
        for (keys, values), (kept_keys, kept_values) in zip(again, layers, strict=True):
            assert torch.equal(keys, kept_keys) and torch.equal(values, kept_values)
    assert cache.own_layers[1].keys.shape[0] == len(batch.token) == len(cache.bias) == 2


def test_room_that_only_a_long_response_needed_is_not_computed_for_long(batch: Batch) -> None:
    batch.cache.see(8)
    batch.keep(4, vacated=[], movers=[], block=4)
    assert batch.cache.size.columns == 8 and batch.cache.own_layers[0].keys.shape[2] == 4
    assert batch.cache.bias.shape[-1] == batch.cache.width + 4
    for _ in range(3):
        batch.step()
        batch.steps += 1
    assert batch.columns(4) == 4 and batch.columns(2) == 4
