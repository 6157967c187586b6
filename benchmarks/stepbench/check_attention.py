"""Training on shared prefixes against one row a response: log-probs, entropies and gradients, in both precisions.

On a GPU the shared rows go through FlexAttention, on a CPU through the tree attention in its place; the rows of their
own go through scaled_dot_product_attention on both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rest_core.errors import UserError
from rest_core.model.batch import Batch, Group, padded_batch, shared_batch
from rest_core.model.logprobs import Policy
from rest_core.training.update import ROW_MULTIPLE_CUDA

from .checking import Check, Found, Progress, largest, random_rollouts, relative, relative_of_all, rms
from .measure import Clock, compilation
from .work import Work

WORK = {
    "cuda": Work("attention", prompts=3, prompt_tokens=400, group=4, new_tokens=180),
    "cpu": Work("attention", prompts=2, prompt_tokens=40, group=3, new_tokens=20),
}

# FLOAT32 errors come from adding in another order alone: a few 1e-7 a product, through 30 layers about 1e-5 (that is
# what float32 differs from float64 by on a CPU). A wrong mask or position is off by 1e-1 and more, TF32 by about 1e-3.
VALUES, GRADIENTS = 2e-4, 2e-4
_FLOAT32 = "float32 in another order: about 1e-5 through 30 layers; a wrong mask is off by 1e-1, TF32 by 1e-3"
# BFLOAT16 has a rounding of its own that no layout can avoid: the measure is the error of the plain path, which is
# that of every training in bfloat16.
HALF = 2.0
_BFLOAT16 = "twice the plain path's own bfloat16 error; SmolLM2-135M on a CPU has 0.9 to 1.6 over 16 tokens"
HALF_AT_ALL = 0.3
_USABLE = "bfloat16 keeps 8 bits: SmolLM2-135M on a CPU has 0.07 nats; a wrong mask is off by 1"


@dataclass(frozen=True)
class _Values:
    logp: Tensor  # (N,)
    entropy: Tensor  # (N,)
    gradients: dict[str, Tensor]
    seconds: float


def check(model: Any, device: torch.device, work: Work, progress: Progress) -> Found:
    """Compare the layouts on `model` (float32, on `device`).

    Raises:
        UserError: the model is not trained on shared rows at all.
    """
    rollouts = random_rollouts(work, model.get_input_embeddings().num_embeddings)
    groups = [Group(tuple(range(n, n + work.group))) for n in range(0, len(rollouts), work.group)]
    clock = Clock(device)
    begin = clock.now()
    policy = Policy(model.train())
    if not policy.shared:
        raise UserError("the trial of shared rows has failed on this model and device; the reason stands above")
    figures: dict[str, Any] = {"seconds": {"trial of shared rows": clock.now() - begin}}
    multiple = ROW_MULTIPLE_CUDA if device.type == "cuda" else 1
    batches = {
        "plain": padded_batch(rollouts, groups, pad_id=0).to(device),
        "shared": shared_batch(rollouts, groups, pad_id=0, multiple=multiple).to(device),
    }
    figures["tokens"] = {name: batch.input_ids.numel() for name, batch in batches.items()}
    found: dict[tuple[str, str], _Values] = {}
    for precision in ("float32", "bfloat16"):
        for layout, batch in batches.items():
            first = _values(policy, batch, clock, half=precision == "bfloat16")  # compiles what is compiled
            again = found[precision, layout] = _values(policy, batch, clock, half=precision == "bfloat16")
            figures["seconds"][f"{precision}, {layout}"] = {"first": first.seconds, "again": again.seconds}
            progress(f"{precision}, {layout}: {first.seconds:.2f} s, then {again.seconds:.2f} s")
    figures["compilation"] = compilation()
    reference = found["float32", "plain"]
    checks = _exact(found["float32", "shared"], reference)
    checks += _half(found["bfloat16", "shared"], found["bfloat16", "plain"], reference)
    return Found(checks, figures)


def _values(policy: Policy, batch: Batch, clock: Clock, *, half: bool) -> _Values:
    model, count = policy.model, len(batch.targets)
    model.zero_grad(set_to_none=True)
    # A loss that has every token and both values in it, each with a factor of its own.
    factors = torch.linspace(-1, 1, count, device=batch.targets.device)

    def loss_of(tokens: slice, logp: Tensor, entropy: Tensor) -> Tensor:
        return (factors[tokens] * logp + 0.1 * factors[tokens].flip(0) * entropy).sum() / count

    begin = clock.now()
    with torch.autocast(batch.targets.device.type, torch.bfloat16, enabled=half):
        loss, logp, entropy = policy(batch, loss_of, entropy_gradient=True)
    loss.backward()
    seconds = clock.now() - begin
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return _Values(logp, entropy, gradients, seconds)


def _exact(found: _Values, wanted: _Values) -> list[Check]:
    worst = max(wanted.gradients, key=lambda name: relative(found.gradients[name], wanted.gradients[name]))
    return [
        Check("float32: largest difference of a log-prob", largest(found.logp, wanted.logp), VALUES, _FLOAT32),
        Check("float32: largest difference of an entropy", largest(found.entropy, wanted.entropy), VALUES, _FLOAT32),
        Check(
            f"float32: relative difference of the worst gradient ({worst})",
            relative(found.gradients[worst], wanted.gradients[worst]),
            GRADIENTS,
            _FLOAT32,
        ),
    ]


def _half(found: _Values, plain: _Values, wanted: _Values) -> list[Check]:
    checks = [Check("bfloat16: error of log-probs", rms(found.logp, wanted.logp), HALF_AT_ALL, _USABLE)]
    for what, error, allowed in (
        ("log-probs", rms(found.logp, wanted.logp), rms(plain.logp, wanted.logp)),
        ("entropies", rms(found.entropy, wanted.entropy), rms(plain.entropy, wanted.entropy)),
        (
            "gradients",
            relative_of_all(found.gradients, wanted.gradients),
            relative_of_all(plain.gradients, wanted.gradients),
        ),
    ):
        checks.append(
            Check(f"bfloat16: error of {what}, as a share of the plain path's", error / allowed, HALF, _BFLOAT16)
        )
    return checks
