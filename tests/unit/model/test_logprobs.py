"""The fused head and loss against all logits of one row at a time, without padding, in both layouts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from rest_core.config import LoraConfig
from rest_core.errors import NotFiniteLogits
from rest_core.model import attention, logprobs
from rest_core.model.batch import Batch, Group, empty_batch, padded_batch, shared_batch
from rest_core.model.loading import with_lora
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout

# Tokens of each prompt, and of the responses to it.
LENGTHS = ((4, (7, 3)), (9, (1,)), (2, (5, 0, 2)), (6, (8,)))

PLAIN = {"llama": {}, "qwen2": {}, "qwen3": {"head_dim": 8}, "mistral": {"tie_word_embeddings": True}}
NOT_LINEAR = {
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 3.0},
    "granite": {"logits_scaling": 4.0},
    "cohere": {"logit_scale": 0.25},
}
NOT_SHARED = {"mistral", "gemma2"}  # layers with a window


def rollouts(lengths: Sequence[tuple[int, Sequence[int]]] = LENGTHS) -> list[Rollout]:
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 262, (count,), generator=generator).tolist()

    rows = []
    for length, responses in lengths:
        prompt = ids(length)
        rows += [(prompt, ids(response)) for response in responses]
    return [Rollout(prompt, response, [0.0] * len(response), True, 0) for prompt, response in rows]


def make_batch(rows: Sequence[Rollout], *, shared: bool = False, pad_id: int = 0, multiple: int = 1) -> Batch:
    if not shared:
        return padded_batch(rows, [Group(tuple(range(len(rows))))], pad_id=pad_id)
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, rollout in enumerate(rows):
        groups.setdefault(tuple(rollout.prompt_ids), []).append(n)
    return shared_batch(rows, [Group(tuple(g)) for g in groups.values()], pad_id=pad_id, multiple=multiple)


def expected(model: Any, rows: Sequence[Rollout], batch: Batch) -> tuple[Tensor, Tensor]:
    """logp and entropy (N,) in the order of `batch`, in the obvious way and in float64."""
    logps, entropies = [], []
    for rollout in rows:
        ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
        start = len(rollout.prompt_ids)
        everything = model(input_ids=ids).logits.double().log_softmax(-1)[0, start - 1 : -1]  # (T, V)
        logps.append(everything[torch.arange(len(rollout.response_ids)), ids[0, start:]])
        entropies.append(-(everything.exp() * everything).sum(-1))
    places = list(zip(batch.rows.tolist(), batch.columns.tolist(), strict=True))
    assert sorted(places) == [(row, t) for row, rollout in enumerate(rows) for t in range(len(rollout.response_ids))]
    return (
        torch.stack([logps[row][column] for row, column in places]),
        torch.stack([entropies[row][column] for row, column in places]),
    )


def sum_of_logps(part: slice, logp: Tensor, entropy: Tensor) -> Tensor:
    return logp.sum()


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    loss.backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        atol = 1e-5 * max(1.0, float(other[name].abs().max()))
        torch.testing.assert_close(gradient, other[name], rtol=1e-4, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    ("architecture", "shared"),
    [(name, shared) for shared in (False, True) for name in PLAIN | NOT_LINEAR if not (shared and name in NOT_SHARED)],
)
@pytest.mark.parametrize("chunk", [3, 512])
def test_log_probs_entropies_and_gradients_are_those_of_all_logits(
    random_model: Callable[..., Any], architecture: str, chunk: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(architecture, **(PLAIN | NOT_LINEAR)[architecture])
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", chunk * model.config.vocab_size)
    monkeypatch.setattr(attention, "QUERY_BLOCK", chunk)
    oracle = copy.deepcopy(model)
    rows = rollouts()
    policy = Policy(model)
    assert policy.plain_head == (architecture in NOT_LINEAR)
    assert policy.shared == (architecture not in NOT_SHARED)
    batch = make_batch(rows, shared=shared, multiple=8)
    scale = torch.linspace(-1, 1, len(batch.targets))  # so that no two tokens count the same

    def token_loss(part: slice, logp: Tensor, entropy: Tensor) -> Tensor:
        return (logp * scale[part] + entropy * scale[part].square()).sum()

    loss, logp, entropy = policy(batch, token_loss, entropy_gradient=True)
    true_logp, true_entropy = expected(oracle, rows, batch)
    torch.testing.assert_close(logp.double(), true_logp, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), true_entropy, rtol=1e-5, atol=1e-5)
    true_loss = (true_logp * scale + true_entropy * scale.square()).sum()
    torch.testing.assert_close(loss.double(), true_loss, rtol=1e-5, atol=1e-4)
    assert_same_gradients(gradients(model, loss), gradients(oracle, true_loss))
    # Without a loss, the same values; and so without gradients altogether.
    for again in (policy(batch), torch.no_grad()(policy)(batch, token_loss)):
        assert torch.equal(again[1], logp) and torch.equal(again[2], entropy) and not again[0].requires_grad


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
    assert not any(module._forward_hooks for module in tiny_model.modules())
    torch.testing.assert_close(tiny_model.eval()(ids).logits, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_padding_does_not_matter(random_model: Callable[..., Any], architecture: str) -> None:
    policy = Policy(random_model(architecture, **({} if architecture == "llama" else NOT_LINEAR["gemma2"])))
    rows = rollouts()
    others = [make_batch(rows, pad_id=77), make_batch([*rows, *rollouts([(20, (15,))])])]
    if policy.shared:
        others += [make_batch(rows, shared=True, pad_id=pad, multiple=multiple) for pad, multiple in ((0, 1), (77, 64))]

    def by_place(batch: Batch) -> dict[tuple[int, int], tuple[float, float]]:
        _, *values = policy(batch)
        places = zip(batch.rows.tolist(), batch.columns.tolist(), strict=True)
        return dict(zip(places, zip(*(v.tolist() for v in values), strict=True), strict=True))

    together = by_place(make_batch(rows))
    for row, rollout in enumerate(rows):
        for (_, column), values in by_place(make_batch([rollout])).items():
            assert values == pytest.approx(together[row, column], rel=1e-5, abs=1e-5)
    for other in map(by_place, others):
        for place, values in together.items():
            assert values == pytest.approx(other[place], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("shared", [False, True], ids=["padded", "shared"])
def test_values_are_those_of_sampled_tokens_alone(tiny_model: Any, shared: bool) -> None:
    rows = rollouts()
    batch = make_batch(rows, shared=shared)
    _, logp, entropy = Policy(tiny_model)(batch)
    assert len(logp) == len(entropy) == len(batch.targets) == sum(len(rollout.response_ids) for rollout in rows)
    assert bool((logp < 0).all()) and bool((entropy > 0).all())
    assert logp.dtype == entropy.dtype == torch.float32
    for row, column, target in zip(batch.rows, batch.columns, batch.targets, strict=True):
        assert rows[row].response_ids[column] == target


def test_entropy_has_a_gradient_only_when_asked(tiny_model: Any) -> None:
    batch = make_batch(rollouts(), shared=True)
    policy = Policy(tiny_model)

    def gradient(token_loss: logprobs.TokenLoss, **options: Any) -> dict[str, Tensor]:
        tiny_model.zero_grad()
        policy(batch, token_loss, **options)[0].backward()
        return {name: p.grad.clone() for name, p in tiny_model.named_parameters()}

    with_entropy = gradient(lambda part, logp, entropy: logp.sum() + 100 * entropy.sum())
    for name, plain in gradient(sum_of_logps).items():
        assert torch.equal(with_entropy[name], plain), name
    asked = gradient(lambda part, logp, entropy: entropy.sum(), entropy_gradient=True)
    assert any(bool(g.any()) for g in asked.values())


@pytest.mark.parametrize("shared", [False, True], ids=["padded", "shared"])
@pytest.mark.parametrize("architecture", ["llama", "granite"])
def test_a_batch_without_a_sampled_token_has_a_loss_and_a_gradient_of_zero(
    random_model: Callable[..., Any], architecture: str, shared: bool
) -> None:
    model = random_model(architecture, **(PLAIN | NOT_LINEAR)[architecture])
    policy = Policy(model)
    for batch in (make_batch(rollouts([(3, (0, 0)), (2, (0,))]), shared=shared), empty_batch(0, shared=shared)):
        loss, logp, entropy = policy(batch, sum_of_logps)
        assert not loss and not len(logp) and not len(entropy)
        loss.backward()  # a process without rows takes part in the collectives of the backward all the same
        assert not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


@pytest.mark.parametrize("shared", [False, True], ids=["padded", "shared"])
def test_adapters_are_part_of_the_policy(tiny_model: Any, shared: bool) -> None:
    adapted = with_lora(tiny_model, LoraConfig(r=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    oracle = copy.deepcopy(adapted).eval()
    rows = rollouts()
    batch = make_batch(rows, shared=shared)
    policy = Policy(adapted.eval())
    assert policy.shared and not policy.plain_head
    loss, logp, _ = policy(batch, sum_of_logps)
    true_logp = expected(oracle, rows, batch)[0]
    torch.testing.assert_close(logp.double(), true_logp, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(adapted, loss), gradients(oracle, true_logp.sum()))
    assert all((p.grad is not None) == ("lora_" in name) for name, p in adapted.named_parameters())


@pytest.mark.parametrize("shared", [False, True], ids=["padded", "shared"])
def test_no_logits_of_all_tokens_are_ever_held(tiny_model: Any, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 4 * tiny_model.config.vocab_size)
    policy = Policy(tiny_model)
    sizes: list[int] = []
    batch = make_batch(rollouts(), shared=shared)
    with tiny_model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output))):
        loss = policy(batch, sum_of_logps)[0]
        forward = len(sizes)
        loss.backward()
    assert sum(sizes) == sum(sum(responses) for _, responses in LENGTHS)  # each token once
    assert max(sizes) == 4
    assert len(sizes) == forward  # never again in the backward
    assert tiny_model.lm_head.weight.grad is not None


def test_the_loss_sees_each_token_once_and_in_order(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_LOGITS", 5 * tiny_model.config.vocab_size)
    seen: list[tuple[slice, Tensor]] = []

    def token_loss(part: slice, logp: Tensor, entropy: Tensor) -> Tensor:
        seen.append((part, logp.detach().clone()))
        return logp.sum()

    _, logp, _ = Policy(tiny_model)(make_batch(rollouts(), shared=True), token_loss)
    assert [part.start for part, _ in seen] == list(range(0, len(logp), 5))
    for part, values in seen:
        assert torch.equal(values, logp[part])


@pytest.mark.parametrize("architecture", ["llama", "granite"])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_told(
    random_model: Callable[..., Any], architecture: str, broken: float
) -> None:
    model = random_model(architecture, **(PLAIN | NOT_LINEAR)[architecture])
    policy = Policy(model)
    with torch.no_grad():
        model.get_output_embeddings().weight[3, 0] = broken  # one logit of a token, of hundreds
    for token_loss in (None, sum_of_logps):
        with pytest.raises(NotFiniteLogits, match="NaN or infinite"):
            policy(make_batch(rollouts(), shared=True), token_loss)
