"""The policy loss: a clipped surrogate, token by token, times the token's weight.

    objective = Σ_i (1/T_i) Σ_t w_it · min(ρ_it Â_i, clip(ρ_it, 1-ε, 1+ε) Â_i)

ρ = exp(logp - old_logp). Dual clip (arXiv 1912.09729) bounds the loss of a negative advantage at c·|Â|. With all
weights 1 this is GRPO, to the bit.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # e^20 is beyond any clip and still finite


class Denominators(NamedTuple):
    """What sums are divided by: of the whole batch of an optimizer update, over all micro-batches and processes.

    Fixed before the batch is split, so that any split gives the same gradient.
    """

    sequences: float
    tokens: float
    weight: float

    @classmethod
    def of(cls, mask: Tensor, weights: Tensor) -> Denominators:
        """From mask and weights (B, T) of the whole batch."""
        return cls(float(mask.shape[0]), float(mask.sum()), float((weights * mask).double().sum()))


class LossOutput(NamedTuple):
    loss: Tensor  # scalar
    metrics: dict[str, float]  # means over the tokens inside the mask; ratio/max is a maximum


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    clip: float | tuple[float, float] = 0.2,
    dual_clip: float | None = 3.0,
    aggregation: Literal["sequence_mean", "token_mean"] = "sequence_mean",
    denominators: Denominators | None = None,
    ref_logp: Tensor | None = None,
    kl_coefficient: float = 0.0,
    entropy: Tensor | None = None,
    entropy_coefficient: float = 0.0,
) -> LossOutput:
    """Loss of one micro-batch; the losses of all micro-batches of an update add up to the update's loss.

    Args:
        logp: (B, T) log-probs of the sampled tokens under the policy that is trained, with gradient.
        old_logp: (B, T) the same under the policy that sampled them.
        advantages: (B,) one a sequence, or (B, T).
        mask: (B, T) true on sampled tokens.
        weights: (B, T) token weights.
        clip: ε, or (ε_low, ε_high).
        dual_clip: c > 1, or None for none.
        aggregation: "sequence_mean" = each sequence's mean over its T_i tokens, then the mean over sequences (the
            paper); "token_mean" = Σ(w·mask·loss) / Σ(w·mask) (the authors' code).
        denominators: of the whole update; None = of this micro-batch alone.
        ref_logp: (B, T) under the reference policy, for the KL penalty (k3 estimator, unweighted: it holds the whole
            policy, not only what the weights favour).
        entropy: (B, T) policy entropy in nats with gradient, for the entropy bonus (unweighted likewise).
    """
    low, high = clip if isinstance(clip, tuple) else (clip, clip)
    inside = mask.bool()
    total = denominators or Denominators.of(mask, weights)
    if advantages.dim() == 1:
        advantages = advantages[:, None]

    log_ratio = torch.where(inside, logp - old_logp, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)  # (B, T)
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - low, 1 + high)
    surrogate = torch.maximum(unclipped, clipped)  # (B, T)
    if dual_clip is not None:
        bounded = torch.minimum(surrogate, -advantages * dual_clip)
        surrogate = torch.where(advantages < 0, bounded, surrogate)

    lengths = inside.sum(dim=1, keepdim=True).clamp_min(1)  # (B, 1)

    def aggregate(values: Tensor, token_weights: Tensor, token_total: float) -> Tensor:
        weighted = torch.where(inside, values * token_weights, 0.0)
        if aggregation == "sequence_mean":
            return (weighted / lengths).sum() / total.sequences
        return weighted.sum() / (token_total + 1e-8)

    loss = aggregate(surrogate, weights, total.weight)
    ones = torch.ones_like(weights)
    metrics = {}
    if kl_coefficient:
        if ref_logp is None:
            raise ValueError("a KL penalty needs ref_logp")
        gap = torch.where(inside, ref_logp - logp, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        kl = gap.exp() - gap - 1
        loss = loss + kl_coefficient * aggregate(kl, ones, total.tokens)
        metrics["kl/reference"] = _mean(kl, inside)
    if entropy_coefficient:
        if entropy is None:
            raise ValueError("an entropy bonus needs entropy")
        loss = loss - entropy_coefficient * aggregate(entropy, ones, total.tokens)

    with torch.no_grad():
        metrics |= {
            "ratio/mean": _mean(ratio, inside),
            "ratio/max": float(ratio[inside].max()) if inside.any() else 1.0,
            "clip_share": _mean((clipped > unclipped).float(), inside),
            "dual_clip_share": _mean(
                ((advantages < 0) & (ratio > dual_clip)).float() if dual_clip is not None else torch.zeros_like(ratio),
                inside,
            ),
            "kl/old": _mean(log_ratio.exp() - log_ratio - 1, inside),
        }
    return LossOutput(loss, metrics)


def _mean(values: Tensor, inside: Tensor) -> float:
    return float(values.detach()[inside].mean()) if inside.any() else 0.0
