"""Against transformers' own generation, and against a full forward on the ids that come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from rest_core.config import LoraConfig
from rest_core.errors import NotFiniteLogits
from rest_core.model.loading import with_lora
from rest_core.records import Rollout
from rest_core.rollout import unshared
from rest_core.rollout.decoding import Pace
from rest_core.rollout.transformers_engine import TransformersEngine

PAD = 264
PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16, 17, 18], [21], [31, 32, 33, 34, 35]]
SEEDS = [101, 102, 103, 104]
SHARED: dict[str, dict[str, Any]] = {
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "olmo2": {"num_key_value_heads": 2},
    "gpt2": {},
}
OTHER: dict[str, dict[str, Any]] = {
    "gemma2": {"head_dim": 8, "sliding_window": 4},  # layers whose cache holds the last four tokens only
    "mistral": {"sliding_window": 4},
    "qwen3_next": {  # a recurrent layer, then one of full attention
        "head_dim": 8,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
        "num_experts": 0,
    },
}
ARCHITECTURES = SHARED | OTHER


def engine(model: Any, stop: set[int] | None = None) -> TransformersEngine:
    return TransformersEngine(model, stop_ids=frozenset(stop or ()), pad_id=PAD)


def ids(results: list[list[Rollout]]) -> list[list[list[int]]]:
    return [[rollout.response_ids for rollout in group] for group in results]


def sampled(model: Any, stop: set[int], **options: Any) -> list[list[Rollout]]:
    arguments: dict[str, Any] = {"samples": 3, "max_new_tokens": 12, "seeds": SEEDS, **options}
    return engine(model, stop).generate(PROMPTS, **arguments)


def teacher_forced(model: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Log-probs (T,) and entropies (T,) of a response in one forward pass over prompt and response."""
    with torch.no_grad():
        logits = model(torch.tensor([rollout.prompt_ids + rollout.response_ids]), use_cache=False).logits[0]
    logps = logits[len(rollout.prompt_ids) - 1 : -1].log_softmax(dim=-1)
    chosen = logps.gather(1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
    return chosen, -(logps.exp() * logps).sum(dim=-1)


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
    for rollout in rollouts:
        assert len(rollout.logps) == len(rollout.entropies or []) == len(rollout.response_ids)
        logp, entropy = teacher_forced(model, rollout)
        torch.testing.assert_close(torch.tensor(rollout.logps), logp, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(torch.tensor(rollout.entropies), entropy, rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_shared_prefix_gives_what_copies_of_it_give(
    random_model: Callable[..., Any], architecture: str, temperature: float
) -> None:
    model = random_model(architecture, **SHARED[architecture])
    stop = set(range(60))
    shared, copied = engine(model, stop), engine(model, stop)
    assert shared.shares_prefix
    copied.shares_prefix = False
    arguments: dict[str, Any] = {"samples": 3, "max_new_tokens": 20, "seeds": SEEDS, "temperature": temperature}
    ours, theirs = shared.generate(PROMPTS, **arguments), copied.generate(PROMPTS, **arguments)
    assert ids(ours) == ids(theirs)
    assert len({len(response) for group in ids(ours) for response in group}) > 2  # rows end at different places
    for our_group, their_group in zip(ours, theirs, strict=True):
        for our, their in zip(our_group, their_group, strict=True):
            assert our.finished == their.finished
            torch.testing.assert_close(our.logps, their.logps, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(our.entropies, their.entropies, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize(
    "pace",
    [
        Pace(
            100, 100, parts=8, fillers=False, capture=False, prefill_tokens=99, padding_is_free=False
        ),  # nothing ever leaves, nothing grows
        Pace(1, 1, parts=8, fillers=False, capture=False, prefill_tokens=99, padding_is_free=False),
        Pace(3, 5, parts=4, fillers=True, capture=False, prefill_tokens=99, padding_is_free=False),  # as on a GPU
    ],
    ids=["whole", "row by row", "in sizes"],
)
def test_neither_leaving_rows_nor_growing_buffers_change_anything(
    random_model: Callable[..., Any], architecture: str, pace: Pace
) -> None:
    model = random_model(architecture, **SHARED[architecture])
    wanted = ids(sampled(model, set(range(60)), max_new_tokens=20))
    made = engine(model, set(range(60)))
    made.pace = pace
    rows: list[int] = []
    with model.register_forward_hook(lambda m, args, kwargs, out: rows.append(len(out.logits)), with_kwargs=True):
        assert ids(made.generate(PROMPTS, samples=3, max_new_tokens=20, seeds=SEEDS)) == wanted
    assert rows[1:] == sorted(rows[1:], reverse=True)
    assert (len(set(rows[1:])) > 1) == (pace.look_every < 100)
    if pace.fillers:
        assert set(rows[1:]) <= {12, 9, 6, 3}


@pytest.mark.parametrize("architecture", OTHER)
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_dropping_ended_rows_changes_nothing(
    random_model: Callable[..., Any], architecture: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model(architecture, **OTHER[architecture])
    wanted = sampled(model, set(range(60)))
    monkeypatch.setattr(unshared, "COMPACT_SHARE", share)  # never, or at each ending
    made = engine(model, set(range(60)))
    rows: list[int] = []
    with model.register_forward_hook(lambda m, args, kwargs, out: rows.append(len(out.logits)), with_kwargs=True):
        again = made.generate(PROMPTS, samples=3, max_new_tokens=12, seeds=SEEDS)
    assert ids(again) == ids(wanted)
    assert (len(set(rows[1:])) > 1) == (share == 1.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_that_cannot_share_prefixes_says_so_once(
    random_model: Callable[..., Any], architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = random_model(architecture, **ARCHITECTURES[architecture])
    usual = model.config._attn_implementation
    made = engine(model)
    made.generate(PROMPTS, max_new_tokens=2, temperature=0.0)
    made.generate(PROMPTS, max_new_tokens=2, temperature=0.0)
    assert made.shares_prefix == (architecture in SHARED)
    reasons = [record.getMessage() for record in caplog.records if "own cache" in record.getMessage()]
    assert len(reasons) == (architecture in OTHER)
    for other, why in (("gemma2", "softcap"), ("mistral", "SlidingWindow")):
        assert architecture != other or why in reasons[0]
    assert model.config._attn_implementation == usual  # the model is left as it was


def test_a_prompt_is_prefilled_once_for_its_group(tiny_model: Any) -> None:
    made, shapes = engine(tiny_model), []
    with tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    ):
        made.generate(PROMPTS, samples=3, max_new_tokens=4, seeds=SEEDS)
    assert shapes == [(4, 8), (12, 1), (12, 1), (12, 1)]


def test_prompts_are_prefilled_in_runs_of_bounded_size(tiny_model: Any) -> None:
    made, shapes = engine(tiny_model), []
    wanted = ids(sampled(tiny_model, set()))
    made.pace = replace(made.pace, prefill_tokens=10)
    with tiny_model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    ):
        again = made.generate(PROMPTS, samples=3, max_new_tokens=12, seeds=SEEDS)
    assert shapes[:4] == [(1, 8), (2, 5), (1, 1), (12, 1)]
    assert ids(again) == wanted


@pytest.mark.parametrize(("architecture", "batches"), [("llama", [(2, 8), (6, 1), (2, 3), (6, 1)]), ("mistral", None)])
def test_the_budget_bounds_what_is_in_flight(
    random_model: Callable[..., Any], architecture: str, batches: list[tuple[int, int]] | None
) -> None:
    model = random_model(architecture, **ARCHITECTURES[architecture])
    made, rows = engine(model), []
    with model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    ):
        made.generate(PROMPTS, samples=3, max_new_tokens=2, seeds=SEEDS, batch_tokens=30)
    # Longest first: a prompt of 8, 5, 3 or 1 tokens and three responses of 2; 2 · (8 + 3 · 2) = 28 ≤ 30. Where each
    # row has its own copy of the prompt, 3 · (8 + 2) = 30, then 3 · (5 + 2) = 21, then 2 groups would need 30.
    assert rows == (batches or [(1, 8), (3, 1), (1, 5), (3, 1), (2, 3), (6, 1)])


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
    def made_of(master: Any) -> TransformersEngine:
        return TransformersEngine.copy_of(master, dtype=torch.bfloat16, stop_ids=frozenset({1}), pad_id=PAD)

    def responses(made: TransformersEngine) -> list[list[Rollout]]:
        return made.generate(PROMPTS, samples=2, max_new_tokens=6, seeds=SEEDS)

    tiny_model.train()
    made = made_of(tiny_model)
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}
    assert {p.dtype for p in made.model.parameters()} == {torch.bfloat16}
    assert tiny_model.training and not made.model.training
    before = responses(made)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert responses(made) == before
    made.synchronise(tiny_model, version=7)
    after, fresh = responses(made), responses(made_of(tiny_model))
    assert {rollout.policy_version for group in after for rollout in group} == {7}
    assert ids(after) == ids(fresh) != ids(before)
    assert [r.logps for group in after for r in group] == [r.logps for group in fresh for r in group]


def test_adapters_are_merged_and_followed(tiny_model: Any) -> None:
    adapted = with_lora(tiny_model, LoraConfig(r=2, alpha=8, target_modules=("q_proj", "down_proj")))
    made = TransformersEngine.copy_of(adapted, dtype=torch.float32, stop_ids=frozenset({1}), pad_id=PAD)
    assert made.shares_prefix and not any("lora" in name for name, _ in made.model.named_parameters())
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora" in name:
                parameter.add_(torch.randn_like(parameter))
    made.synchronise(adapted, version=3)
    rollouts = [
        rollout for group in made.generate(PROMPTS, samples=2, max_new_tokens=8, seeds=SEEDS) for rollout in group
    ]
    adapted.eval()
    for rollout in rollouts:
        logp, _ = teacher_forced(adapted, rollout)
        torch.testing.assert_close(torch.tensor(rollout.logps), logp, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "mistral"], ids=["shared", "plain"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_told_and_not_sampled_on(
    random_model: Callable[..., Any], architecture: str, temperature: float
) -> None:
    model = random_model(architecture, **ARCHITECTURES[architecture])
    made = engine(model)
    sound = made.generate(PROMPTS, samples=3, max_new_tokens=6, temperature=temperature, seeds=SEEDS)
    # From a token on that one of the responses has, at its third place: whatever follows it is NaN.
    token = sound[1][0].response_ids[2]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = torch.nan
    steps: list[int] = []
    model.register_forward_hook(lambda *_: steps.append(1))
    with pytest.raises(NotFiniteLogits, match="NaN or infinite"):
        made.generate(PROMPTS[1:2], samples=1, max_new_tokens=200, temperature=temperature, seeds=SEEDS[1:2])
    assert len(steps) < 10
    # A response that ends with that token has nothing after it.
    engine(model, {token}).generate(PROMPTS[1:2], max_new_tokens=200, temperature=temperature, seeds=SEEDS[1:2])


MANY = [[(7 * n + k) % 250 + 5 for k in range(1 + 5 * n % 17)] for n in range(12)]
MANY_SEEDS = list(range(len(MANY)))


def many(made: TransformersEngine, **options: Any) -> list[list[Rollout]]:
    arguments: dict[str, Any] = {"samples": 2, "max_new_tokens": 12, "seeds": MANY_SEEDS, **options}
    return made.generate(MANY, **arguments)


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize(
    "pace",
    [
        Pace(1, 4, parts=8, fillers=False, capture=False, prefill_tokens=16, padding_is_free=True),
        Pace(3, 5, parts=4, fillers=True, capture=False, prefill_tokens=99, padding_is_free=False),
    ],
    ids=["as on a CPU", "as on a GPU"],
)
def test_prompts_that_wait_join_as_others_end(random_model: Callable[..., Any], architecture: str, pace: Pace) -> None:
    model = random_model(architecture, **SHARED[architecture])
    stop = set(range(40))
    wanted = many(engine(model, stop))
    made, rows = engine(model, stop), []
    made.pace = pace
    with model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    ):
        again = many(made, batch_tokens=200)
    assert ids(again) == ids(wanted)
    for our_group, their_group in zip(again, wanted, strict=True):
        for our, their in zip(our_group, their_group, strict=True):
            torch.testing.assert_close(our.logps, their.logps, rtol=1e-4, atol=1e-4)
    steps = [count for count, width in rows if width == 1 and count > 1]
    joined = [before < after for before, after in pairwise(steps)]
    assert any(joined)  # the batch grew again before it was empty
    assert max(steps) <= 2 * (200 // (1 + 2 * 12))


def test_every_response_is_counted_once_when_prompts_join(tiny_model: Any) -> None:
    seen: list[int] = []
    many(engine(tiny_model, set(range(40))), batch_tokens=200, on_progress=seen.append)
    assert sum(seen) == 2 * len(MANY) and len(seen) > 3


def test_a_single_token_is_all(tiny_model: Any) -> None:
    greedy: dict[str, Any] = {"temperature": 0.0, "samples": 1}
    results = many(engine(tiny_model), batch_tokens=60, max_new_tokens=1, **greedy)
    assert ids(results) == [[response[:1] for response in group] for group in ids(many(engine(tiny_model), **greedy))]


def remembering(model: Any, stop: set[int], prefix_bytes: int = 10**8) -> TransformersEngine:
    made = TransformersEngine(model, stop_ids=frozenset(stop), pad_id=PAD, prefix_bytes=prefix_bytes)
    assert made.prefixes is not None
    return made


@pytest.mark.parametrize("architecture", SHARED)
@pytest.mark.parametrize("batch_tokens", [200, 10**6])
@pytest.mark.parametrize("prefix_bytes", [1, 30_000, 10**8])
def test_known_beginnings_change_nothing(
    random_model: Callable[..., Any], architecture: str, batch_tokens: int, prefix_bytes: int
) -> None:
    """Dialogues of three turns: each prompt is the last one, its response and something more."""
    model = random_model(architecture, **SHARED[architecture])
    stop = set(range(40))
    tools = list(range(50, 90))
    prompts = [[*tools, *prompt] for prompt in MANY]
    plain, made = engine(model, stop), remembering(model, stop, prefix_bytes)
    for _ in range(3):
        arguments: dict[str, Any] = {"max_new_tokens": 8, "seeds": MANY_SEEDS, "batch_tokens": batch_tokens}
        wanted, found = plain.generate(prompts, **arguments), made.generate(prompts, **arguments, continued=True)
        assert ids(found) == ids(wanted)
        for (our,), (their,) in zip(found, wanted, strict=True):
            torch.testing.assert_close(our.logps, their.logps, rtol=1e-4, atol=1e-4)
        prompts = [[*prompt, *group[0].response_ids, 7, 8, 9] for prompt, group in zip(prompts, wanted, strict=True)]
    assert (made.prefixes is not None and made.prefixes.reused > 0) or prefix_bytes == 1


@pytest.mark.parametrize("architecture", SHARED)
def test_the_tokens_that_are_kept_are_those_that_the_memory_holds(
    random_model: Callable[..., Any], architecture: str
) -> None:
    made = remembering(random_model(architecture, **SHARED[architecture]), {1})
    prompt = list(range(50, 90))
    made.generate([prompt], max_new_tokens=1, temperature=0.0, continued=True)
    assert made.prefixes is not None
    (node,) = made.prefixes._root.children.values()
    size = sum(tensor.nbytes for pair in node.layers for tensor in pair)
    assert made.kept_tokens == made.prefixes.limit * len(node.ids) // size
    made.device = torch.device("cuda")  # there a small batch costs more than a prompt that is computed anew
    assert made.kept_tokens is None


def test_a_beginning_is_computed_once(tiny_model: Any) -> None:
    made = remembering(tiny_model, {1})
    tools = list(range(50, 150))
    prompts = [[*tools, n, n + 1, n + 2] for n in range(10, 20)]
    first = made.generate(prompts, max_new_tokens=4, temperature=0.0, continued=True)
    tree = made.prefixes
    assert tree is not None
    assert tree.computed == len(tools) + 3 * len(prompts) and tree.reused == len(tools) * len(prompts)
    longer = [[*prompt, *group[0].response_ids, 3] for prompt, group in zip(prompts, first, strict=True)]
    tree.computed = 0
    made.generate(longer, max_new_tokens=4, temperature=0.0)
    assert tree.computed == 2 * len(prompts)  # the last token sampled was never computed, and the one after it
    made.synchronise(tiny_model, version=1)
    assert tree.match(prompts[0]) == []
