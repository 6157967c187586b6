"""The update's fast path against the plain path: one row at a time, all logits, the formulas as they stand in papers.

In float64, where what is left is rounding of 1e-16: the two must agree to 1e-9, gradients included.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from experience import Recorder, token_log_probs
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from rest_core.algorithm.regions import Region
from rest_core.config import LoraConfig, LossConfig, RlConfig
from rest_core.model import attention, logprobs
from rest_core.model.batch import pad_rows
from rest_core.model.loading import with_lora
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout
from rest_core.training.update import Experience, PolicyUpdate, UpdateStatistics

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

D = torch.float64
MAX_RESPONSE_TOKENS = 16
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2},  # its logits are more than its head
    "gpt_neox": {},
    "olmo2": {"tie_word_embeddings": True},
}


def in_double(model: Any) -> Any:
    """float64 throughout: transformers' RMS norms compute in float32 whatever the type, and that is 1e-7 by itself."""

    def forward(module: Any, hidden: Tensor) -> Tensor:
        scaled: Tensor = hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + module.variance_epsilon)
        return scaled * module.weight

    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(forward, module)
    return model.double()


@pytest.fixture(scope="module")
def double_model(random_model: Callable[..., Any]) -> Callable[[str], Any]:
    """double_model(architecture): a float64 model of the caller's own."""
    made: dict[str, Any] = {}

    def make(architecture: str, seed: int = 0) -> Any:
        name = f"{architecture} {seed}"
        if name not in made:
            made[name] = in_double(random_model(architecture, seed=seed, **ARCHITECTURES[architecture]))
        return copy.deepcopy(made[name])

    return make


@pytest.fixture(scope="module", autouse=True)
def small_pieces() -> Iterator[None]:
    """So that heads and attention work in many pieces on inputs of this size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logprobs, "CHUNK_LOGITS", 5 * 270)
        patch.setattr(attention, "QUERY_BLOCK", 4)
        yield


@dataclass(frozen=True)
class Case:
    """What an update is made of; everything that is not named here is drawn from `seed`."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]  # tokens of each prompt, and of its responses
    budget: int = 30  # of tokens a pass
    again: bool = False  # the first prompt comes again as a group of its own
    loss: LossConfig = field(default_factory=LossConfig)
    off_policy: float = 0.0  # how far the old log-probs are from the policy's own; 0 = they are its own
    mismatch: float = 0.0  # how far the engine's are from the old ones
    seed: int = 0


LOSSES = st.builds(
    lambda surrogate, aggregation, **others: LossConfig(**surrogate, **aggregation, **others),
    st.sampled_from(
        [
            *({"surrogate": name, "dual_clip": c} for name in ("clip", "gspo") for c in (None, 1.5)),
            {"surrogate": "cispo", "dual_clip": None},
        ]
    ),
    st.sampled_from(
        [
            {"aggregation": "sequence_mean"},
            {"aggregation": "token_mean"},
            {"aggregation": "constant_length"},
            {"aggregation": "constant_length", "length": 7},
        ]
    ),
    importance_cap=st.sampled_from([None, 1.2]),
    kl_coefficient=st.sampled_from([0.0, 0.3]),
    entropy_coefficient=st.sampled_from([0.0, 0.2]),
)
CASES = st.builds(
    Case,
    groups=st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(0, 14), min_size=1, max_size=5).map(tuple)),
        min_size=1,
        max_size=4,
    ).map(tuple),
    budget=st.integers(1, 100),
    again=st.booleans(),
    loss=LOSSES,
    off_policy=st.sampled_from([0.0, 0.5]),
    mismatch=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 999),
)
# Everything at once: empty, one-token and long responses, a divided group, several groups in a pass, a prompt twice.
EVERYTHING = Case(
    groups=((7, (9, 0, 1, 14)), (3, (2, 5)), (1, (1,)), (12, (4, 0, 8, 3, 13)), (2, (0, 0))),
    again=True,
    loss=LossConfig(dual_clip=1.5, importance_cap=1.2, kl_coefficient=0.3, entropy_coefficient=0.2),
    off_policy=0.6,
    mismatch=0.4,
)


def experience(case: Case, model: Any) -> Experience:
    generator = torch.Generator().manual_seed(case.seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 262, (count,), generator=generator).tolist()

    prompts = [(ids(length), responses) for length, responses in case.groups]
    if case.again:
        prompts.append((prompts[0][0], (6, 1)))
    rollouts, old = [], []
    for prompt, responses in prompts:
        for count in responses:
            rollout = Rollout(prompt, ids(count), [], count % 2 == 0, 0)
            with torch.no_grad():
                own = token_log_probs(model, rollout)[0]
            old.append(own + case.off_policy * torch.randn(count, generator=generator, dtype=D))
            rollout.logps = (old[-1] + case.mismatch * torch.randn(count, generator=generator, dtype=D)).tolist()
            rollouts.append(rollout)
    width = max(1, *(len(rollout.response_ids) for rollout in rollouts))
    shape = len(rollouts), width
    mask = pad_rows([[1] * len(rollout.response_ids) for rollout in rollouts], width, torch.bool)
    advantages = torch.randn(len(rollouts), generator=generator, dtype=D)
    advantages[torch.rand(len(rollouts), generator=generator) < 0.2] = 0.0
    return Experience(
        rollouts=rollouts,
        advantages=advantages,
        regions=torch.randint(0, len(Region), shape, generator=generator),
        mask=mask,
        weights=(0.2 + 2 * torch.rand(shape, generator=generator, dtype=D)) * mask,
        old_logps=pad_rows(old, width, D) if case.off_policy else None,
    )


def gradients(model: Any) -> dict[str, Tensor]:
    """Of what is trained; without a single sampled token there is none, which is a gradient of zero."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}


def plain(model: Any, made: Experience, loss: LossConfig, reference: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients. No sharing, no packing, no padding, full logits, transformers' own attention."""
    sequences, tokens, weight = len(made.rollouts), float(made.mask.sum()), float((made.weights * made.mask).sum())
    total = torch.zeros((), dtype=D)
    for n, rollout in enumerate(made.rollouts):
        count = len(rollout.response_ids)
        if not count:
            continue
        logp, entropy = token_log_probs(model, rollout)
        old = logp.detach() if made.old_logps is None else made.old_logps[n, :count]
        advantage = made.advantages[n]
        ratio = (logp - old).exp()
        if loss.surrogate == "gspo":  # s_it = sg(s_i) · π_t / sg(π_t)
            ratio = (logp - old).mean().exp().detach() * logp.exp() / logp.exp().detach()
        clipped = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
        surrogate = torch.minimum(ratio * advantage, clipped * advantage)
        if loss.dual_clip is not None and advantage < 0:
            surrogate = torch.maximum(surrogate, loss.dual_clip * advantage)
        if loss.surrogate == "cispo":
            surrogate = clipped.detach() * advantage * logp
        if loss.importance_cap is not None:
            surrogate = surrogate * (old - torch.tensor(rollout.logps, dtype=D)).exp().clamp(max=loss.importance_cap)
        value = -surrogate * made.weights[n, :count]
        other = -loss.entropy_coefficient * entropy
        if loss.kl_coefficient:
            with torch.no_grad():
                gap = token_log_probs(reference, rollout)[0]
            gap = gap - logp
            other = other + loss.kl_coefficient * (gap.exp() - gap - 1)
        if loss.aggregation == "sequence_mean":
            total = total + (value + other).mean() / sequences
        elif loss.aggregation == "constant_length":
            total = total + (value + other).sum() / (loss.length or MAX_RESPONSE_TOKENS) / sequences
        else:
            total = total + value.sum() / (weight + 1e-8) + other.sum() / (tokens + 1e-8)
    if total.requires_grad:
        total.backward()
    return float(total.detach()), gradients(model)


def updater(model: Any, case: Case, *, precision: str = "no", reference: Any = None) -> PolicyUpdate:
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision)
    config = RlConfig(prompts_per_step=1000, group_size=2, max_grad_norm=1e12, learning_rate=1e-9, loss=case.loss)
    # Smaller than a profile may have them.
    config = config.model_copy(update={"micro_batch_tokens": case.budget, "max_response_tokens": MAX_RESPONSE_TOKENS})
    policy = accelerator.prepare(Policy(model))
    assert policy.shared
    if reference is not None:
        reference = Policy(reference)
    return PolicyUpdate(policy, Recorder(model), accelerator, config, pad_id=264, reference_policy=reference)


def fast(model: Any, made: Experience, case: Case, **options: Any) -> tuple[UpdateStatistics, dict[str, Tensor]]:
    update = updater(model, case, **options)
    statistics = update.run(made)
    assert isinstance(update.optimizer, Recorder)
    return statistics, update.optimizer.seen[0] if update.optimizer.seen else {}


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    """Relative to each parameter's gradient; one that is zero but for rounding, relative to all."""
    assert ours.keys() == theirs.keys()
    whole = math.sqrt(sum(float(gradient.square().sum()) for gradient in theirs.values()))
    for name, gradient in theirs.items():
        assert ours[name].dtype == gradient.dtype
        error = float((ours[name] - gradient).norm())
        assert error <= tolerance * (float(gradient.norm()) + 1e-3 * whole), name


def compare(model: Any, case: Case, reference: Any = None, tolerance: float = 1e-9) -> UpdateStatistics:
    oracle = copy.deepcopy(model)  # before the model is given another attention
    reference = reference if case.loss.kl_coefficient else None
    made = experience(case, oracle)
    wanted_loss, wanted = plain(oracle, made, case.loss, copy.deepcopy(reference))
    statistics, seen = fast(model, made, case, reference=reference)
    assert statistics.loss == pytest.approx(wanted_loss, rel=tolerance, abs=tolerance)
    nothing = {name: torch.zeros_like(gradient) for name, gradient in wanted.items()}  # no row with a signal: no step
    assert_same_gradients(seen or nothing, wanted, tolerance)
    return statistics


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@given(case=CASES)
@example(case=EVERYTHING)
@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_loss_and_gradients_are_those_of_the_plain_path(
    double_model: Callable[..., Any], architecture: str, case: Case
) -> None:
    compare(double_model(architecture), case, double_model(architecture, seed=5))


def test_the_case_of_everything_has_everything(double_model: Callable[..., Any]) -> None:
    statistics = compare(double_model("llama"), EVERYTHING, double_model("llama", seed=5))
    metrics = statistics.metrics()
    for name in ("clip_share", "dual_clip_share", "mismatch/capped_share", "kl/reference", "update/divided_groups"):
        assert metrics[name] > 0, name
    assert metrics["clip_share"] < 1 and metrics["mismatch/capped_share"] < 1


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
@pytest.mark.parametrize("surrogate", ["clip", "gspo", "cispo"])
@pytest.mark.parametrize("budget", [1, 40, 1000])
def test_every_surrogate_and_aggregation_in_any_split(
    double_model: Callable[..., Any], surrogate: Any, aggregation: Any, budget: int
) -> None:
    loss = EVERYTHING.loss.model_copy(
        update={
            "surrogate": surrogate,
            "aggregation": aggregation,
            "dual_clip": None if surrogate == "cispo" else 1.5,
        }
    )
    case = replace(EVERYTHING, loss=loss, budget=budget)
    metrics = compare(double_model("llama"), case, double_model("llama", seed=5)).metrics()
    assert 0 < metrics["clip_share"] < 1


def test_gspo_with_weights_of_one_is_the_sequences_own_ratio(double_model: Callable[..., Any]) -> None:
    """The token form has the gradient of (1/N) Σ_i min(s_i Â_i, clip(s_i) Â_i), s_i = exp(mean_t(logp - old_logp))."""
    loss = LossConfig(surrogate="gspo", dual_clip=None, importance_cap=None)
    case = replace(EVERYTHING, loss=loss)
    oracle = double_model("llama")
    made = experience(case, oracle)
    made.weights = made.mask.to(D)
    assert made.old_logps is not None
    total = torch.zeros((), dtype=D)
    for n, rollout in enumerate(made.rollouts):
        if count := len(rollout.response_ids):
            gap = token_log_probs(oracle, rollout)[0] - made.old_logps[n, :count]
            s, advantage = gap.mean().exp(), made.advantages[n]
            total = total - torch.minimum(s * advantage, s.clamp(0.8, 1.2) * advantage) / len(made.rollouts)
    total.backward()
    statistics, seen = fast(double_model("llama"), made, case)
    assert statistics.loss == pytest.approx(float(total.detach()), rel=1e-9)
    assert_same_gradients(seen, gradients(oracle), 1e-9)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("budget", [1, 40, 1000])
def test_log_probs_and_entropies_are_those_of_the_plain_path(
    double_model: Callable[..., Any], architecture: str, budget: int
) -> None:
    oracle = double_model(architecture)
    case = Case(EVERYTHING.groups, budget=budget, again=True)
    made = experience(case, oracle)
    logps, entropies = updater(double_model(architecture), case).values(made)
    assert logps.dtype == entropies.dtype == D
    for n, rollout in enumerate(made.rollouts):
        count = len(rollout.response_ids)
        with torch.no_grad():
            logp, entropy = token_log_probs(oracle, rollout)
        torch.testing.assert_close(logps[n, :count], logp, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(entropies[n, :count], entropy, rtol=1e-9, atol=1e-11)
        assert not logps[n, count:].any() and not entropies[n, count:].any()


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "granite"])
def test_adapters(double_model: Callable[..., Any], architecture: str) -> None:
    model = with_lora(double_model(architecture), LoraConfig(r=3, dropout=0.0)).double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.2, generator=generator)
    compare(model, EVERYTHING, double_model(architecture, seed=5))
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("architecture", ["llama", "granite"])
def test_gradient_checkpointing(double_model: Callable[..., Any], architecture: str) -> None:
    model = double_model(architecture).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    entered: list[int] = []
    model.model.layers[0].mlp.register_forward_pre_hook(lambda module, inputs: entered.append(1))
    oracle = double_model(architecture)
    made = experience(EVERYTHING, oracle)
    _, wanted = plain(oracle, made, EVERYTHING.loss, double_model(architecture, seed=5))
    passes: list[int] = []
    update = updater(model, EVERYTHING, reference=double_model(architecture, seed=5))
    entered.clear()  # what the trials of the model have called
    with update.policy.register_forward_pre_hook(lambda module, inputs: passes.append(1)):
        update.run(made)
    assert len(entered) == 2 * len(passes)  # layers are run again in the backward
    assert isinstance(update.optimizer, Recorder)
    assert_same_gradients(update.optimizer.seen[0], wanted, 1e-9)


def test_half_precision_points_the_same_way(random_model: Callable[..., Any], double_model: Callable[..., Any]) -> None:
    case = Case(((8, (12, 3, 14)), (5, (9, 7, 1)), (11, (6, 13, 10))), budget=40)
    oracle = double_model("llama")
    made = experience(case, oracle)
    _, wanted = plain(oracle, made, case.loss, None)
    _, seen = fast(random_model("llama"), made, case, precision="bf16")
    ours, theirs = (torch.cat([grads[name].double().flatten() for name in wanted]) for grads in (seen, wanted))
    assert float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0)) > 0.99
