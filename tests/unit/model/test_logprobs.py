"""The chunked head against all logits of one row at a time, without padding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rest_core.config import LoraConfig
from rest_core.model import logprobs
from rest_core.model.batch import Batch, make_batch
from rest_core.model.loading import with_lora
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout

LENGTHS = ((4, 7), (9, 1), (2, 5), (6, 8))  # (prompt, response) tokens

PLAIN = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "mistral": {"tie_word_embeddings": True}}
NOT_LINEAR = {
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
}


def rollouts(lengths: Sequence[tuple[int, int]] = LENGTHS) -> list[Rollout]:
    generator = torch.Generator().manual_seed(1)
    rows = [
        [torch.randint(0, 262, (n,), generator=generator).tolist() for n in (prompt, response)]
        for prompt, response in lengths
    ]
    return [Rollout(prompt, response, [0.0] * len(response), True, 0) for prompt, response in rows]


def expected(model: Any, rows: Sequence[Rollout], width: int) -> tuple[Tensor, Tensor]:
    """logp and entropy (B, width), in the obvious way and in float64."""
    logps, entropies = torch.zeros(len(rows), width).double(), torch.zeros(len(rows), width).double()
    for row, rollout in enumerate(rows):
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        start = len(rollout.prompt_ids)
        everything = model(input_ids=ids).logits.double().log_softmax(-1)[0, start - 1 : -1]  # (T, V)
        count = len(rollout.response_ids)
        logps[row, :count] = everything[torch.arange(count), ids[0, start:]]
        entropies[row, :count] = -(everything.exp() * everything).sum(-1)
    return logps, entropies


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("architecture", [*PLAIN, *NOT_LINEAR])
@pytest.mark.parametrize("chunk", [3, 512])
def test_log_probs_entropies_and_gradients_are_those_of_all_logits(
    random_model: Callable[..., Any], architecture: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", chunk)
    model = random_model(architecture, **(PLAIN | NOT_LINEAR)[architecture])
    oracle = copy.deepcopy(model)
    rows = rollouts()
    batch = make_batch(rows, pad_id=0)
    policy = Policy(model)
    assert policy.plain_head == (architecture in NOT_LINEAR)

    logp, entropy = policy(batch, entropy_gradient=True)
    true_logp, true_entropy = expected(oracle, rows, batch.mask.shape[1])
    torch.testing.assert_close(logp.double(), true_logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), true_entropy, rtol=1e-5, atol=1e-5)

    scale = torch.linspace(-1, 1, logp.numel()).view_as(logp)  # so that no two tokens count the same
    assert_same_gradients(
        gradients(model, (logp * scale + entropy * scale.square()).sum()),
        gradients(oracle, (true_logp * scale + true_entropy * scale.square()).sum()),
    )


def test_a_cap_is_seen_however_small_the_logits(random_model: Callable[..., Any]) -> None:
    model = random_model("gemma2", head_dim=8, final_logit_softcapping=30.0, spread=0.02)
    logits = model(torch.arange(1, 4)[None]).logits
    assert logits.abs().max() < 1  # where the cap changes next to nothing
    assert Policy(model).plain_head


def test_nothing_is_left_of_the_trial_of_the_head(tiny_model: Any) -> None:
    ids = torch.arange(1, 9)[None]
    before = tiny_model(ids).logits
    tiny_model.train()
    Policy(tiny_model)
    assert tiny_model.training
    assert torch.equal(tiny_model.eval()(ids).logits, before)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_padding_does_not_matter(random_model: Callable[..., Any], architecture: str) -> None:
    policy = Policy(random_model(architecture, **({} if architecture == "llama" else NOT_LINEAR["gemma2"])))
    rows = rollouts()
    whole = make_batch(rows, pad_id=0)
    with torch.no_grad():
        together = policy(whole)
        other_filler = policy(make_batch(rows, pad_id=77))
        wider = policy(make_batch([*rows, *rollouts([(20, 15)])], pad_id=0))
        for row, rollout in enumerate(rows):
            alone = policy(make_batch([rollout], pad_id=0))
            count = len(rollout.response_ids)
            for values, one, others, wide in zip(together, alone, other_filler, wider, strict=True):
                torch.testing.assert_close(values[row, :count], one[0], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(values[row, :count], wide[row, :count], rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(values[row], others[row], rtol=1e-5, atol=1e-5)


def test_values_outside_the_mask_are_zero(tiny_model: Any) -> None:
    batch = make_batch(rollouts(), pad_id=0)
    logp, entropy = Policy(tiny_model)(batch)
    assert torch.equal(logp != 0, batch.mask)
    assert torch.equal(entropy != 0, batch.mask)
    assert logp.dtype == entropy.dtype == torch.float32


def test_entropy_has_a_gradient_only_when_asked(tiny_model: Any) -> None:
    batch = make_batch(rollouts(), pad_id=0)
    policy = Policy(tiny_model)
    logp, entropy = policy(batch)
    (logp.sum() + 100 * entropy.sum()).backward()
    with_entropy = {name: p.grad.clone() for name, p in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    policy(batch)[0].sum().backward()
    for name, parameter in tiny_model.named_parameters():
        assert torch.equal(with_entropy[name], parameter.grad), name
    tiny_model.zero_grad()
    asked = policy(batch, entropy_gradient=True)[1]
    asked.sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in tiny_model.parameters())


def test_a_batch_without_a_sampled_token_has_values_and_a_gradient_of_zero(tiny_model: Any) -> None:
    batch = make_batch(rollouts(), pad_id=0)
    empty = Batch(**{**vars(batch), "mask": torch.zeros_like(batch.mask)})
    logp, entropy = Policy(tiny_model)(empty)
    assert not logp.any() and not entropy.any()
    logp.sum().backward()
    assert not any(p.grad is not None and bool(p.grad.any()) for p in tiny_model.parameters())


def test_adapters_are_part_of_the_policy(tiny_model: Any) -> None:
    adapted = with_lora(tiny_model, LoraConfig(r=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    rows = rollouts()
    batch = make_batch(rows, pad_id=0)
    policy = Policy(adapted.eval())
    assert not policy.plain_head
    logp, _ = policy(batch)
    torch.testing.assert_close(logp.double(), expected(adapted, rows, batch.mask.shape[1])[0], rtol=1e-5, atol=1e-5)
    logp.sum().backward()
    assert all((p.grad is not None) == ("lora_" in name) for name, p in adapted.named_parameters())


def test_no_logits_of_all_tokens_are_ever_held(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 4)
    policy = Policy(tiny_model)
    sizes = []
    with tiny_model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output))):
        policy(make_batch(rollouts(), pad_id=0))[0].sum().backward()
    assert sum(sizes) == 2 * sum(response for _, response in LENGTHS)  # once forward, once again backward
    assert max(sizes) == 4
