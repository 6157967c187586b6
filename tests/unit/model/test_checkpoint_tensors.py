"""What is sent to another engine is what a checkpoint of the policy holds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rest_core.config import LoraConfig
from rest_core.model.loading import save_policy, with_lora
from rest_core.model.parameters import checkpoint_tensors


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("qwen2", {"tie_word_embeddings": True}),
        # In memory its experts are fused, in checkpoints each has its own weights.
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_names_and_values_are_those_of_a_checkpoint(
    random_model: Callable[..., Any],
    tiny_tokenizer: Any,
    tmp_path: Path,
    architecture: str,
    settings: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    model = random_model(architecture, **settings)
    save_policy(copy.deepcopy(model), tiny_tokenizer, tmp_path, dtype=dtype)
    ours = checkpoint_tensors(model, dtype)
    assert equal(ours, load_file(tmp_path / "model.safetensors"))
    assert ("lm_head.weight" in ours) != model.config.tie_word_embeddings


def test_adapters_are_merged_and_the_master_is_left_as_it_is(tiny_model: Any) -> None:
    adapted = with_lora(tiny_model, LoraConfig(r=2))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    ours = checkpoint_tensors(adapted, torch.float32)
    assert equal(before, adapted.state_dict())
    merged = copy.deepcopy(adapted).merge_and_unload()
    theirs = merged.state_dict()
    assert set(ours) == set(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7)
