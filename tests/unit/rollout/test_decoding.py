"""What a CUDA graph of a decode step rests on: the step works in place, in memory that stays where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rest_core.model.attention import implementation
from rest_core.rollout.decoding import Batch
from rest_core.rollout.shared_prefix import IMPLEMENTATION, SharedPrefixCache, prefill

PROMPTS = [[11, 12, 13, 14, 15], [5, 6, 7], [21]]


@pytest.fixture
def batch(random_model: Callable[..., Any]) -> Any:
    model = random_model("qwen3", head_dim=8)
    with torch.no_grad(), implementation(model, IMPLEMENTATION):
        cache, logits = prefill(model, PROMPTS, pad_id=0, tokens_at_once=100)
        cache.start([5, 3, 1], 2, 4)
        yield Batch(
            model,
            cache,
            logits,
            [5, 3, 1],
            torch.rand(6, 10, generator=torch.Generator().manual_seed(0)),
            torch.tensor([1]),
            samples=2,
            max_new_tokens=10,
            temperature=1.0,
        )


def places(batch: Batch) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Address and shape of every tensor of a batch and its cache."""

    def tensors(prefix: str, owner: Any) -> dict[str, Tensor]:
        return {f"{prefix}.{name}": value for name, value in vars(owner).items() if isinstance(value, Tensor)}

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
    batch.grow(8)
    assert places(batch) != before


def test_a_step_depends_on_tensors_alone(batch: Batch) -> None:
    """Set back by copies into the same memory it gives the same again, as a replayed graph must."""
    state = [batch.token, batch.positions, batch.drawn, batch.ended, batch.cache.column, batch.cache.bias]
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
    batch.ended.copy_(torch.tensor([True, True, False, True, True, False]))  # of prompts 0 0 1 1 2 2
    cache: SharedPrefixCache = batch.cache
    kept = cache.own_layers[0].prompt_keys[1:].clone()
    order = batch.shrink(2)
    assert sorted(order.tolist()) == [2, 5]
    assert torch.equal(cache.own_layers[0].prompt_keys, kept)
    assert cache.row.shape == (2, 1)  # two prompts, one row each
    assert [int(order[row]) for row in cache.row[:, 0]] == [2, 5]
    assert cache.own_layers[1].keys.shape[0] == len(batch.token) == len(cache.bias) == 2


def test_ended_rows_may_stay_as_fillers(batch: Batch) -> None:
    batch.ended.copy_(torch.tensor([True, False, False, True, True, False]))
    order = batch.shrink(4)
    assert set(order.tolist()) >= {1, 2, 5} and len(set(order.tolist())) == 4
    assert batch.ended.tolist().count(True) == 1
    batch.step()
