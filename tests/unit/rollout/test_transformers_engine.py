"""Against transformers' own generation, and against a full forward on the ids that come back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rest_core.model.batch import Group, padded_batch
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout
from rest_core.rollout import transformers_engine
from rest_core.rollout.transformers_engine import TransformersEngine

PAD = 264
PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18], [21], [31, 32, 33, 34, 35]]
SEEDS = [101, 102, 103, 104]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"head_dim": 8, "sliding_window": 4},  # layers whose cache holds the last four tokens only
}


def engine(model: Any, stop: set[int] | None = None) -> TransformersEngine:
    return TransformersEngine(model, stop_ids=frozenset(stop or ()), pad_id=PAD)


def ids(results: list[list[Rollout]]) -> list[list[list[int]]]:
    return [[rollout.response_ids for rollout in group] for group in results]


def sampled(model: Any, stop: set[int], **options: Any) -> list[list[Rollout]]:
    arguments: dict[str, Any] = {"samples": 3, "max_new_tokens": 12, "seeds": SEEDS, **options}
    return engine(model, stop).generate(PROMPTS, **arguments)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_transformers_own(random_model: Callable[..., Any], architecture: str) -> None:
    model = random_model(architecture, **ARCHITECTURES[architecture])
    free = engine(model).generate(PROMPTS, max_new_tokens=14, temperature=0.0)
    # Ids that really occur, so that rows end at different places.
    stop = {free[0][0].response_ids[4], free[1][0].response_ids[9]}
    ours = engine(model, stop).generate(PROMPTS, max_new_tokens=14, temperature=0.0)
    width = max(map(len, PROMPTS))
    theirs = model.generate(
        input_ids=torch.tensor([[PAD] * (width - len(prompt)) + prompt for prompt in PROMPTS]),
        attention_mask=torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS]),
        do_sample=False,
        max_new_tokens=14,
        eos_token_id=sorted(stop),
        pad_token_id=PAD,
    )[:, width:].tolist()
    lengths = []
    for (rollout,), row in zip(ours, theirs, strict=True):
        end = next((n + 1 for n, token in enumerate(row) if token in stop), len(row))
        assert rollout.response_ids == row[:end]
        assert rollout.finished == (row[end - 1] in stop)
        lengths.append(end)
    assert len(set(lengths)) > 1


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_log_probs_and_entropies_are_those_of_a_full_forward(
    random_model: Callable[..., Any], architecture: str
) -> None:
    model = random_model(architecture, **ARCHITECTURES[architecture])
    rollouts = [rollout for group in sampled(model, {1, 2, 3, 4, 5, 6, 7, 8}) for rollout in group]
    with torch.no_grad():
        batch = padded_batch(rollouts, [Group(tuple(range(len(rollouts))))], pad_id=PAD)
        _, logp, entropy = Policy(copy.deepcopy(model))(batch)
    for row, rollout in enumerate(rollouts):
        count = len(rollout.response_ids)
        assert len(rollout.logps) == len(rollout.entropies or []) == count == int((batch.rows == row).sum())
        torch.testing.assert_close(torch.tensor(rollout.logps), logp[batch.rows == row], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.tensor(rollout.entropies), entropy[batch.rows == row], rtol=1e-4, atol=1e-4)


def test_results_have_the_shape_and_order_of_the_prompts(tiny_model: Any) -> None:
    results = sampled(tiny_model, set())
    assert [[rollout.prompt_ids for rollout in group] for group in results] == [[prompt] * 3 for prompt in PROMPTS]
    assert {len(rollout.response_ids) for group in results for rollout in group} == {12}
    assert not any(rollout.finished for group in results for rollout in group)
    responses = [tuple(rollout.response_ids) for group in results for rollout in group]
    assert len(set(responses)) == len(responses)  # samples of a group differ


def test_a_response_ends_with_the_first_stop_id(tiny_model: Any) -> None:
    stop = set(range(30))
    seen = [rollout for group in sampled(tiny_model, stop) for rollout in group]
    for rollout in seen:
        assert not stop & set(rollout.response_ids[:-1])
        assert rollout.finished == (rollout.response_ids[-1] in stop)
    assert {rollout.finished for rollout in seen} == {True, False}


@pytest.mark.parametrize("batch_tokens", [1, 70, 120, 10**6])
def test_what_is_sampled_does_not_depend_on_the_batches(tiny_model: Any, batch_tokens: int) -> None:
    stop = set(range(30))
    assert ids(sampled(tiny_model, stop, batch_tokens=batch_tokens)) == ids(sampled(tiny_model, stop))


def test_what_is_sampled_does_not_depend_on_the_order_of_the_prompts(tiny_model: Any) -> None:
    order = [2, 0, 3, 1]
    mixed = engine(tiny_model, {1}).generate(
        [PROMPTS[n] for n in order], samples=3, max_new_tokens=12, seeds=[SEEDS[n] for n in order]
    )
    straight = sampled(tiny_model, {1})
    assert ids(mixed) == [ids(straight)[n] for n in order]


def test_another_seed_gives_other_responses_to_its_prompt_alone(tiny_model: Any) -> None:
    one = ids(sampled(tiny_model, {1}))
    other = ids(sampled(tiny_model, {1}, seeds=[101, 999, 103, 104]))
    assert [a == b for a, b in zip(one, other, strict=True)] == [True, False, True, True]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropping_ended_rows_changes_nothing(
    random_model: Callable[..., Any], architecture: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(architecture, **ARCHITECTURES[architecture])
    wanted = sampled(model, set(range(60)))
    monkeypatch.setattr(transformers_engine, "COMPACT_SHARE", share)  # never, or at each ending
    rows: list[int] = []
    with model.register_forward_hook(lambda m, args, kwargs, out: rows.append(len(out.logits)), with_kwargs=True):
        again = sampled(model, set(range(60)))
    assert ids(again) == ids(wanted)
    assert (len(set(rows[1:])) > 1) == (share == 1.0)


def test_a_prompt_is_prefilled_once_for_its_group(tiny_model: Any) -> None:
    shapes = []
    with tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    ):
        sampled(tiny_model, set(), max_new_tokens=4)
    assert shapes == [(4, 8), (12, 1), (12, 1), (12, 1)]


def test_the_budget_bounds_what_is_in_flight(tiny_model: Any) -> None:
    rows = []
    with tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(kwargs["input_ids"].shape), with_kwargs=True
    ):
        sampled(tiny_model, set(), max_new_tokens=2, batch_tokens=60)
    # Longest first: groups of 3 rows of 10, 7, 5 and 3 tokens; 2 · 3 · 10 = 60.
    assert rows == [(2, 8), (6, 1), (2, 3), (6, 1)]


def test_progress_counts_every_response(tiny_model: Any) -> None:
    seen: list[int] = []
    sampled(tiny_model, {1}, batch_tokens=60, on_progress=seen.append)
    assert sum(seen) == len(PROMPTS) * 3 and len(seen) > 1


def test_sampling_needs_a_seed_for_every_prompt(tiny_model: Any) -> None:
    for seeds in (None, SEEDS[:3]):
        with pytest.raises(ValueError, match="one seed a prompt"):
            sampled(tiny_model, set(), seeds=seeds)
    assert len(engine(tiny_model).generate(PROMPTS, max_new_tokens=2, temperature=0.0)) == 4
    assert engine(tiny_model).generate([], max_new_tokens=2, temperature=0.0) == []


def test_the_engine_follows_the_master_and_stamps_its_version(tiny_model: Any) -> None:
    tiny_model.train()
    made = TransformersEngine.copy_of(tiny_model, dtype=torch.bfloat16, stop_ids=frozenset({1}), pad_id=PAD)
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    assert tiny_model.training and not made.model.training
    before = copy.deepcopy(made.model)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert all(torch.equal(p, q) for p, q in zip(made.model.parameters(), before.parameters(), strict=True))
    made.synchronise(tiny_model, version=7)
    for ours, theirs in zip(made.model.parameters(), tiny_model.parameters(), strict=True):
        assert torch.equal(ours, theirs.bfloat16())
    results = made.generate(PROMPTS, samples=2, max_new_tokens=2, seeds=SEEDS)
    assert {rollout.policy_version for group in results for rollout in group} == {7}
