from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from experience import ADVANTAGES, GROUP, Recorder, make_experience, token_log_probs
from torch import Tensor

from rest_core.algorithm.regions import Region
from rest_core.config import LossConfig, RlConfig
from rest_core.errors import UserError
from rest_core.model.logprobs import Policy
from rest_core.training.update import Experience, PolicyUpdate, UpdateStatistics

pytestmark = pytest.mark.usefixtures("fresh_accelerator")


def settings(**changes: Any) -> RlConfig:
    defaults: dict[str, Any] = {
        "prompts_per_step": 4,
        "group_size": GROUP,
        "learning_rate": 0.05,
        "max_grad_norm": 1e9,
        "micro_batch_tokens": 10**6,
        "max_response_tokens": 10,
    }
    return RlConfig(**{**defaults, **changes})


def updater(
    model: Any, config: RlConfig, *, precision: str = "no", shared: bool = True, **options: Any
) -> PolicyUpdate:
    AcceleratorState._reset_state(reset_partial_state=True)  # its precision is settled once a process
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    policy = accelerator.prepare(Policy(model, shared=shared))
    return PolicyUpdate(policy, Recorder(model), accelerator, config, **{"pad_id": 264, **options})


def run(model: Any, experience: Experience, config: RlConfig, **options: Any) -> tuple[Any, UpdateStatistics]:
    """Update a copy of `model`; returns its optimizer and the statistics."""
    update = updater(copy.deepcopy(model), config, **options)
    return update.optimizer, update.run(experience)


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert any(bool(gradient.any()) for gradient in one.values())
    for name, gradient in one.items():
        scale = float(other[name].abs().max())
        torch.testing.assert_close(
            gradient, other[name], rtol=1e-4, atol=1e-5 * scale, msg=lambda text, n=name: f"{n}: {text}"
        )


def by_hand(
    model: Any,
    experience: Experience,
    loss: LossConfig,
    *,
    rows: list[int] | None = None,
    old: list[Tensor] | None = None,
    reference: Any = None,
) -> dict[str, Tensor]:
    """Gradients of the objective, one row at a time from all logits; `old` log-probs default to the policy's own."""
    model = copy.deepcopy(model)
    rows = list(range(len(experience.rollouts))) if rows is None else rows
    everything = sum(len(experience.rollouts[n].response_ids) for n in rows)
    weight = sum(float(experience.weights[n].sum()) for n in rows)
    total = torch.zeros(())
    for n in rows:
        rollout, advantage = experience.rollouts[n], experience.advantages[n]
        count = len(rollout.response_ids)
        logp, entropy = token_log_probs(model, rollout)
        gap = logp - (logp.detach() if old is None else old[n])
        ratio = gap.exp()
        if loss.surrogate == "gspo":
            ratio = gap.mean().exp().detach() * logp.exp() / logp.exp().detach()
        clipped = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        if advantage < 0 and loss.dual_clip is not None:
            surrogate = torch.maximum(surrogate, loss.dual_clip * advantage)
        if loss.surrogate == "cispo":
            surrogate = clipped.detach() * advantage * logp
        value = -surrogate * experience.weights[n, :count]
        other = -loss.entropy_coefficient * entropy
        if reference is not None:
            with torch.no_grad():
                ref = token_log_probs(reference, rollout)[0]
            other = other + loss.kl_coefficient * ((ref - logp).exp() - (ref - logp) - 1)
        if loss.aggregation == "sequence_mean":
            total = total + (value + other).mean() / len(rows)
        elif loss.aggregation == "constant_length":
            total = total + (value + other).sum() / 10 / len(rows)
        else:
            total = total + value.sum() / weight + other.sum() / everything
    total.backward()
    return {name: p.grad for name, p in model.named_parameters()}


AGGREGATIONS = pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
SURROGATES = pytest.mark.parametrize(
    "surrogate",
    [
        {},
        {"surrogate": "gspo", "clip_low": 0.02, "clip_high": 0.02},
        {"surrogate": "cispo", "dual_clip": None},
    ],
    ids=["clip", "gspo", "cispo"],
)


@AGGREGATIONS
def test_with_all_weights_one_it_is_grpo(tiny_model: Any, aggregation) -> None:
    made = make_experience(tiny_model)
    made.weights = made.mask.float()
    loss = LossConfig(aggregation=aggregation)
    optimizer, _ = run(tiny_model, made, settings(loss=loss))
    # GRPO on its own samples: the gradient of -Â log π, averaged.
    model = copy.deepcopy(tiny_model)
    total = torch.zeros(())
    for advantage, rollout in zip(ADVANTAGES, made.rollouts, strict=True):
        logp, _ = token_log_probs(model, rollout)
        share = {"sequence_mean": len(logp) * 12, "constant_length": 10 * 12}.get(aggregation, int(made.mask.sum()))
        total = total - advantage * logp.sum() / share
    total.backward()
    assert_same(optimizer.seen[0], {name: p.grad for name, p in model.named_parameters()})


@AGGREGATIONS
def test_weights_penalty_and_bonus_work_together(
    tiny_model: Any, random_model: Callable[..., Any], aggregation
) -> None:
    made = make_experience(tiny_model)
    reference = random_model(seed=5)
    loss = LossConfig(aggregation=aggregation, kl_coefficient=0.3, entropy_coefficient=0.2)
    optimizer, statistics = run(tiny_model, made, settings(loss=loss), reference_policy=Policy(reference))
    assert_same(optimizer.seen[0], by_hand(tiny_model, made, loss, reference=reference))
    assert statistics.metrics()["kl/reference"] > 0
    plain = LossConfig(aggregation=aggregation)
    with pytest.raises(AssertionError):
        assert_same(optimizer.seen[0], by_hand(tiny_model, made, plain))


@AGGREGATIONS
@pytest.mark.parametrize("extra", [{}, {"kl_coefficient": 0.3, "entropy_coefficient": 0.2}])
@pytest.mark.parametrize("shared", [True, False], ids=["shared", "padded"])
def test_any_split_gives_the_same_update(
    tiny_model: Any, random_model: Callable[..., Any], aggregation, extra, shared: bool
) -> None:
    made = make_experience(tiny_model)
    loss = LossConfig(aggregation=aggregation, **extra)
    options: dict[str, Any] = {"shared": shared}
    if extra:
        options["reference_policy"] = Policy(random_model(seed=5), shared=shared)
    wanted = by_hand(tiny_model, made, loss, reference=options["reference_policy"].model if extra else None)
    losses = []
    for budget in (64, 90, 10**6):
        optimizer, statistics = run(tiny_model, made, settings(loss=loss, micro_batch_tokens=budget), **options)
        assert len(optimizer.seen) == 1
        assert_same(optimizer.seen[0], wanted)
        losses.append(statistics.metrics())
    computed = [metrics.pop("tokens/computed") for metrics in losses]
    assert len(set(computed)) == 1  # no group is divided: no prompt is computed twice
    for one in losses[1:]:
        assert one == pytest.approx(losses[0], rel=1e-4, abs=1e-6)


def test_the_order_of_the_rows_does_not_matter(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    order = [7, 0, 11, 3, 5, 9, 1, 10, 2, 8, 6, 4]
    mixed = Experience(
        rollouts=[made.rollouts[n] for n in order],
        **{name: getattr(made, name)[order] for name in ("advantages", "regions", "mask", "weights")},
    )
    one, straight = run(tiny_model, made, settings(micro_batch_tokens=64))
    other, shuffled = run(tiny_model, mixed, settings(micro_batch_tokens=64))
    assert_same(one.seen[0], other.seen[0])
    torch.testing.assert_close(straight.entropy_sums, shuffled.entropy_sums)
    assert torch.equal(straight.entropy_counts, shuffled.entropy_counts)


def test_padding_does_not_matter(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    # Wider, and with garbage where no token is.
    wider = {
        "mask": torch.nn.functional.pad(made.mask, (0, 9)),
        "regions": torch.nn.functional.pad(made.regions, (0, 9), value=int(Region.NAME)),
        "weights": torch.nn.functional.pad(torch.where(made.mask, made.weights, 55.0), (0, 9), value=77.0),
    }
    one, straight = run(tiny_model, made, settings(micro_batch_tokens=90))
    other, padded = run(tiny_model, make_experience(tiny_model, **wider), settings(micro_batch_tokens=90), pad_id=3)
    assert_same(one.seen[0], other.seen[0])
    torch.testing.assert_close(straight.entropy_sums, padded.entropy_sums)


def forwarded(update: PolicyUpdate, made: Experience) -> list[int]:
    """Responses in every forward of the policy in an update."""
    rows: list[int] = []
    with update.policy.register_forward_pre_hook(lambda module, args: rows.append(len(args[0].rows.unique()))):
        update.run(made)
    return rows


def test_groups_without_signal_cost_no_forward_and_still_count(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    update = updater(copy.deepcopy(tiny_model), settings())
    assert sum(forwarded(update, made)) == 9  # of 12
    signal = [n for n in range(12) if ADVANTAGES[n]]
    alone = by_hand(tiny_model, made, LossConfig(), rows=signal)
    assert_same(update.optimizer.seen[0], {name: gradient * 9 / 12 for name, gradient in alone.items()})
    bonus = updater(copy.deepcopy(tiny_model), settings(loss=LossConfig(entropy_coefficient=0.1)))
    assert sum(forwarded(bonus, made)) == 12


def test_a_rollout_without_any_signal_changes_nothing(tiny_model: Any) -> None:
    made = make_experience(tiny_model, advantages=torch.zeros(12))
    update = updater(tiny_model, settings())
    before = copy.deepcopy(tiny_model.state_dict())
    statistics = update.run(made)
    assert update.version == 0 and statistics.metrics() == {
        "loss": 0.0,
        "updates": 0.0,
        "tokens/trained": 0.0,
        "tokens/computed": 0.0,
        "update/divided_groups": 0.0,
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny_model.state_dict().items())


@SURROGATES
def test_later_mini_batches_are_held_against_the_policy_that_sampled(
    tiny_model: Any, surrogate: dict[str, Any]
) -> None:
    made = make_experience(tiny_model)
    config = settings(mini_batch_prompts=1, learning_rate=0.3, loss=LossConfig(**surrogate))
    update = updater(copy.deepcopy(tiny_model), config)
    statistics = update.run(made)

    old = [token_log_probs(tiny_model, rollout)[0].detach() for rollout in made.rollouts]
    model = copy.deepcopy(tiny_model)
    wanted = []
    for rows in ([0, 1, 2], [3, 4, 5], [9, 10, 11]):  # the third group is no update at all
        wanted.append(by_hand(model, made, config.loss, rows=rows, old=old))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter -= config.learning_rate * wanted[-1][name]
    assert len(update.optimizer.seen) == update.version == 3
    for ours, theirs in zip(update.optimizer.seen, wanted, strict=True):
        assert_same(ours, theirs)
    metrics = statistics.metrics()
    assert metrics["updates"] == 3
    assert metrics["ratio/max"] > 1 + config.loss.clip_high  # the steps were large enough for the clip to matter
    assert metrics["clip_share"] > 0
    # With the policy itself as the old one, the later steps would be others.
    drifted = by_hand(tiny_model, made, config.loss, rows=[3, 4, 5])
    with pytest.raises(AssertionError):
        assert_same(update.optimizer.seen[1], drifted)


def test_one_update_a_rollout_needs_no_forward_for_old_log_probs(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    assert sum(forwarded(updater(copy.deepcopy(tiny_model), settings(mini_batch_prompts=4)), made)) == 9
    assert made.old_logps is None
    assert sum(forwarded(updater(copy.deepcopy(tiny_model), settings(mini_batch_prompts=2)), made)) == 12 + 9


def test_gspo_costs_a_pass_with_several_updates_a_rollout_alone(tiny_model: Any) -> None:
    loss = LossConfig(surrogate="gspo")
    made = make_experience(tiny_model)
    once = updater(copy.deepcopy(tiny_model), settings(loss=loss))
    assert sum(forwarded(once, made)) == 9
    twice = updater(copy.deepcopy(tiny_model), settings(loss=loss, mini_batch_prompts=2))
    assert sum(forwarded(twice, made)) == 12 + 9 + 9  # no row without a signal


@SURROGATES
def test_with_one_update_a_rollout_all_surrogates_have_one_gradient(tiny_model: Any, surrogate: dict[str, Any]) -> None:
    made = make_experience(tiny_model)
    optimizer, statistics = run(tiny_model, made, settings(loss=LossConfig(**surrogate)))
    plain, _ = run(tiny_model, made, settings())
    assert_same(optimizer.seen[0], plain.seen[0])
    metrics = statistics.metrics()
    assert metrics["ratio/mean"] == metrics["ratio/max"] == 1.0 and metrics["clip_share"] == 0


def test_mini_batches_are_whole_groups_in_order(tiny_model: Any) -> None:
    update = updater(tiny_model, settings(mini_batch_prompts=2))
    assert update._mini_batches(12) == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    assert updater(tiny_model, settings())._mini_batches(12) == [list(range(12))]


def test_stale_rollouts_are_refused(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    update = updater(tiny_model, settings())
    update.run(made)
    with pytest.raises(RuntimeError, match="policy version 0 reached the update of version 1"):
        update.run(made)


@pytest.mark.parametrize("damage", ["nan weight", "exploding", "nan gradient"])
def test_a_loss_that_breaks_stops_before_any_weight_changes(tiny_model: Any, damage: str) -> None:
    made = make_experience(tiny_model)
    update = updater(tiny_model, settings(micro_batch_tokens=64))
    if damage == "nan weight":
        with torch.no_grad():
            tiny_model.model.norm.weight[0] = math.nan
    elif damage == "exploding":
        made.advantages[-1] = -1e7
    else:
        tiny_model.model.norm.weight.register_hook(lambda gradient: gradient * math.nan)
    before = copy.deepcopy(tiny_model.state_dict())
    with pytest.raises(UserError, match="logits are NaN" if damage == "nan weight" else r"lower rl\.learning_rate"):
        update.run(made)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(9.0), before[name].nan_to_num(9.0)), name
    assert update.version == 0 and not update.optimizer.seen


def test_the_gradient_is_clipped_to_its_norm(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    free, measured = run(tiny_model, made, settings())
    norm = measured.metrics()["grad_norm"]
    assert norm == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in free.seen[0].values())), rel=1e-4)
    clipped, again = run(tiny_model, made, settings(max_grad_norm=norm / 10))
    assert again.metrics()["grad_norm"] == pytest.approx(norm, rel=1e-4)  # logged before clipping
    assert_same(clipped.seen[0], {name: gradient / 10 for name, gradient in free.seen[0].items()})


def test_the_learning_rate_warms_up_over_updates(tiny_model: Any) -> None:
    config = settings(mini_batch_prompts=1, warmup_steps=2, learning_rate=0.01)
    optimizer, _ = run(tiny_model, make_experience(tiny_model), config)
    assert optimizer.rates == pytest.approx([0.005, 0.01, 0.01])


def test_half_precision_computes_and_master_weights_stay_whole(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    precise, _ = run(tiny_model, made, settings())
    update = updater(tiny_model, settings(), precision="bf16")
    adam = update.optimizer = torch.optim.AdamW(tiny_model.parameters(), lr=1e-4)
    gradients: dict[str, Tensor] = {}
    for name, parameter in tiny_model.named_parameters():
        parameter.register_hook(lambda gradient, name=name: gradients.__setitem__(name, gradient))
    computed: set[torch.dtype] = set()
    tiny_model.lm_head.register_forward_hook(lambda module, inputs, output: computed.add(output.dtype))
    before = copy.deepcopy(tiny_model.state_dict())
    update.run(made)
    assert computed == {torch.bfloat16}
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}
    moments = [state[key] for state in adam.state.values() for key in ("exp_avg", "exp_avg_sq")]
    assert moments and {moment.dtype for moment in moments} == {torch.float32}
    # A change of 1e-4 would be lost in bfloat16 weights of this size.
    changed = [not torch.equal(p, before[name]) for name, p in tiny_model.named_parameters()]
    assert all(changed)
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients.values()])
    exact = torch.cat([precise.seen[0][name].reshape(-1) for name in gradients])
    assert float(torch.nn.functional.cosine_similarity(flat, exact, dim=0)) > 0.99


def test_entropies_by_region_come_from_the_training_forward(tiny_model: Any) -> None:
    made = make_experience(tiny_model)
    _, statistics = run(tiny_model, made, settings(micro_batch_tokens=64))
    sums, counts = torch.zeros(len(Region)).double(), torch.zeros(len(Region)).double()
    for n, rollout in enumerate(made.rollouts):
        if ADVANTAGES[n]:
            with torch.no_grad():
                entropy = token_log_probs(tiny_model, rollout)[1].double()
            codes = made.regions[n, : len(entropy)]
            sums.index_add_(0, codes, entropy)
            counts += torch.bincount(codes, minlength=len(Region))
    torch.testing.assert_close(statistics.entropy_sums, sums, rtol=1e-5, atol=1e-5)
    assert torch.equal(statistics.entropy_counts, counts)


def test_the_sampler_and_the_trainer_agree_on_the_policy(tiny_model: Any) -> None:
    metrics = run(tiny_model, make_experience(tiny_model), settings())[1].metrics()
    assert metrics["mismatch/ratio_mean"] == pytest.approx(1, abs=1e-4)
    assert metrics["mismatch/kl"] == pytest.approx(0, abs=1e-4)
    made = make_experience(tiny_model)
    for rollout in made.rollouts:
        rollout.logps = [value - math.log(2) for value in rollout.logps]
    off = run(tiny_model, made, settings())[1].metrics()
    assert off["mismatch/ratio_mean"] == pytest.approx(2, rel=1e-4)


def test_statistics_are_means_over_tokens_and_merge_over_processes() -> None:
    one, other = UpdateStatistics(), UpdateStatistics()
    one.add({"clip_share": 0.5, "ratio/max": 1.5}, tokens=10)
    one.add({"clip_share": 0.1, "ratio/max": 1.1}, tokens=30)
    other.add({"clip_share": 1.0, "ratio/max": 3.0}, tokens=40)
    one.loss, other.loss, one.grad_norms, other.grad_norms = 0.5, 0.25, [2.0, 4.0], [2.0, 4.0]
    one.computed, other.computed = 70, 100
    one.divided_groups, other.divided_groups = 2, 3
    one.merge([other])
    assert one.metrics() == pytest.approx(
        {
            "clip_share": 0.6,
            "ratio/max": 3.0,
            "loss": 0.375,
            "updates": 2.0,
            "grad_norm": 3.0,
            "tokens/trained": 80.0,
            "tokens/computed": 170.0,
            "update/divided_groups": 5.0,
        }
    )


@AGGREGATIONS
@pytest.mark.parametrize("mini_batch_prompts", [None, 2])
def test_dropped_rows_are_as_if_they_had_not_been_sampled(
    tiny_model: Any, aggregation: Any, mini_batch_prompts: int | None
) -> None:
    """Neither in the forward (entropy bonus and KL penalty would need them) nor in a denominator."""
    loss = LossConfig(aggregation=aggregation, entropy_coefficient=0.1)
    whole = make_experience(tiny_model)
    dropped = torch.tensor([n // GROUP in (1, 3) for n in range(len(whole.rollouts))])
    kept = [n for n, gone in enumerate(dropped.tolist()) if not gone]
    some = make_experience(tiny_model, untrained=dropped, advantages=whole.advantages.masked_fill(dropped, 0.0))
    alone = Experience(
        rollouts=[whole.rollouts[n] for n in kept],
        advantages=whole.advantages[kept],
        regions=whole.regions[kept],
        mask=whole.mask[kept],
        weights=whole.weights[kept],
    )
    config = settings(loss=loss, mini_batch_prompts=mini_batch_prompts)
    ours, seen = run(tiny_model, some, config)
    # Groups 0 and 2 are left: of four prompts in mini-batches of two, one a mini-batch.
    single = settings(loss=loss, mini_batch_prompts=mini_batch_prompts and 1)
    theirs, expected = run(tiny_model, alone, single)
    assert len(ours.seen) == len(theirs.seen) == (2 if mini_batch_prompts else 1)
    for one, other in zip(ours.seen, theirs.seen, strict=True):
        for name, gradient in other.items():
            torch.testing.assert_close(one[name], gradient, rtol=1e-5, atol=1e-7)
    assert seen.tokens == expected.tokens
    assert torch.equal(seen.entropy_counts, expected.entropy_counts)


def test_a_process_without_rollouts_has_no_entropies(tiny_model: Any) -> None:
    assert updater(tiny_model, settings()).entropies([]) == []


def test_a_mini_batch_whose_groups_are_all_dropped_makes_no_update(tiny_model: Any) -> None:
    whole = make_experience(tiny_model)
    dropped = torch.tensor([n < 2 * GROUP for n in range(len(whole.rollouts))])
    some = make_experience(tiny_model, untrained=dropped, advantages=whole.advantages.masked_fill(dropped, 0.0))
    optimizer, seen = run(tiny_model, some, settings(mini_batch_prompts=2, loss=LossConfig(entropy_coefficient=0.1)))
    assert len(optimizer.seen) == len(seen.grad_norms) == 1
