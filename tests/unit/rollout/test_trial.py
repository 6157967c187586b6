"""Which models the shared prefix fits, tried in the type that they came in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rest_core.rollout import trial


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2"])
def test_rounding_in_half_precision_is_no_reason(
    random_model: Callable[..., Any], architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(architecture).bfloat16()
    monkeypatch.setattr(trial, "_ALLOWED_ROUNDED", 0.0)  # as of a model whose logits round far apart
    state = torch.random.get_rng_state()
    assert trial.why_not_shared_prefix(model) is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_another_attention_is_one_in_half_precision_too(
    random_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("llama").bfloat16()
    monkeypatch.setattr(trial, "_ALLOWED_ROUNDED", 0.0)
    attend = trial.forward
    monkeypatch.setattr(trial, "forward", lambda m, cache, token, at: attend(m, cache, token, at + 1))
    assert "gives other logits" in (trial.why_not_shared_prefix(model) or "")


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-3), (torch.bfloat16, 0.1)])
def test_prompts_of_one_row_each_are_decoded_right_too(
    random_model: Callable[..., Any], dtype: torch.dtype, allowed: float
) -> None:
    with torch.no_grad():
        assert trial._difference(random_model("llama", spread=0.1).to(dtype).eval(), samples=1) < allowed
