"""What an engine takes from a master: every name of a tied weight, gathered shards, merged adapters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rest_core.config import LoraConfig
from rest_core.model.loading import with_lora
from rest_core.model.parameters import merged_parameters, without_adapters
from rest_core.rollout import packed
from rest_core.rollout.transformers_engine import TransformersEngine


class Sharded(torch.nn.Parameter):
    """A parameter whose own value is only a shard; `full_tensor` is the whole, as with a DTensor."""

    def full_tensor(self) -> torch.Tensor:
        return self.detach() * 2


def randomise(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)


@pytest.mark.parametrize("tied", [False, True])
def test_a_plain_master_is_taken_as_it_is(random_model: Callable[..., Any], tied: bool) -> None:
    master = random_model("llama", tie_word_embeddings=tied)
    taken = dict(merged_parameters(master))
    assert set(taken) == {name for name, _ in master.named_parameters(remove_duplicate=False)}
    assert "lm_head.weight" in taken
    assert all(torch.equal(taken[name], parameter) for name, parameter in master.named_parameters())


def test_adapters_come_merged_and_the_master_stays(tiny_model: Any) -> None:
    master = with_lora(tiny_model, LoraConfig(r=2, alpha=8, target_modules="all-linear"))
    randomise(master)
    before = copy.deepcopy(master.state_dict())
    taken = dict(merged_parameters(master))
    wanted = dict(without_adapters(copy.deepcopy(master)).named_parameters(remove_duplicate=False))
    assert set(taken) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(taken[name], value.detach(), rtol=1e-6, atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in master.state_dict().items())


def test_shards_are_gathered(tiny_model: Any) -> None:
    made = TransformersEngine.copy_of(tiny_model, dtype=torch.float32, stop_ids=frozenset({1}), pad_id=0)
    weight = tiny_model.model.layers[0].mlp.up_proj.weight
    tiny_model.model.layers[0].mlp.up_proj.weight = Sharded(weight.detach())
    made.synchronise(tiny_model, version=1)
    assert torch.equal(made.model.model.layers[0].mlp.up_proj.weight, 2 * weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tied", [False, True])
def test_packed_layers_compute_the_same_and_follow_the_master(
    random_model: Callable[..., Any], tied: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "SMALLEST_FLOAT32", 1)  # the layers of this model are small
    master = random_model("qwen2", tie_word_embeddings=tied)
    plain = copy.deepcopy(master).to(dtype)
    if not packed.can_pack(plain):
        pytest.skip(f"this machine or torch build has no packed products of {dtype}")
    made = TransformersEngine.copy_of(master, dtype=dtype, stop_ids=frozenset({1}), pad_id=0)
    assert isinstance(made.model.lm_head, packed.PackedLinear)
    assert made.model.model.layers[0].self_attn.q_proj.bias is not None
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        torch.testing.assert_close(made.model(ids).logits, plain(ids).logits)
        randomise(master)
        made.synchronise(master, version=1)
        torch.testing.assert_close(made.model(ids).logits, copy.deepcopy(master).to(dtype)(ids).logits)


def test_small_float32_layers_stay_as_they_are(random_model: Callable[..., Any]) -> None:
    model = random_model("llama")
    packed.pack(model)
    assert not any(isinstance(module, packed.PackedLinear) for module in model.modules())


def test_packing_frees_the_weights(random_model: Callable[..., Any]) -> None:
    model = random_model("llama").bfloat16()
    if not packed.can_pack(model):
        pytest.skip("this machine or torch build has no packed bfloat16 products")
    packed.pack(model)
    assert not any("proj" in name for name, _ in model.named_parameters())
