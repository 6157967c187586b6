"""The policy loss: a clipped surrogate, token by token, times the token's weight.

    objective = Σ_i (1/T_i) Σ_t w_it · c_it · min(ρ_it Â_i, clip(ρ_it, 1-ε, 1+ε) Â_i)

ρ = exp(logp - old_logp). Dual clip (arXiv 1912.09729) bounds the loss of a negative advantage at c·|Â|. c_it, truncated
importance sampling, corrects for an engine whose log-probs differ from the trainer's; without it, and with all weights
1, this is GRPO. `LossConfig.surrogate` replaces the minimum by GSPO's, with one ratio for the whole sequence, or by
CISPO's, whose clipped ratio is a constant factor of the log-prob.

Everything that decides a token's share is known before the forward: `token_scales` folds weights, lengths and
denominators into one factor a token, so that the loss is a plain sum over tokens and any split gives the same gradient.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rest_core.config import LossConfig

MAX_LOG_RATIO = 20.0  # e^20 is beyond any clip and still finite


class Denominators(NamedTuple):
    """What sums are divided by: of the whole batch of an optimizer update, over all micro-batches and processes."""

    sequences: float
    tokens: float
    weight: float

    @classmethod
    def of(cls, mask: Tensor, weights: Tensor) -> Denominators:
        """From mask and weights (B, T) of the whole batch."""
        return cls(float(mask.shape[0]), float(mask.sum()), float((weights * mask).double().sum()))


class TokenTerms(NamedTuple):
    """What the loss of each of N sampled tokens is made of, besides the policy's own values; all (N,)."""

    advantages: Tensor
    scale: Tensor  # of the surrogate: weight and denominator
    penalty_scale: Tensor  # of the KL penalty and the entropy bonus: the denominator alone
    old_logp: Tensor | None = None  # None: the policy itself, before its only update
    sampled_logp: Tensor | None = None  # of the engine that sampled, for importance sampling; None = no correction
    ref_logp: Tensor | None = None  # of the reference policy, needed with a KL penalty
    sequence_log_ratio: Tensor | None = None  # GSPO: of the token's sequence; None: 0, as before the only update

    def part(self, tokens: slice) -> TokenTerms:
        return TokenTerms(*(None if values is None else values[tokens] for values in self))  # type: ignore[arg-type]


def policy_loss(logp: Tensor, entropy: Tensor, terms: TokenTerms, config: LossConfig) -> Tensor:
    """The sum (a scalar) over N tokens of their loss; the sums of all parts of an update add up to its loss.

    Args:
        logp: (N,) log-probs of the sampled tokens under the policy that is trained, with gradient.
        entropy: (N,) policy entropy in nats, with gradient where there is an entropy bonus.
    """
    old = logp.detach() if terms.old_logp is None else terms.old_logp
    values, _, _ = _surrogate(logp, old, terms, config)
    if config.importance_cap is not None and terms.sampled_logp is not None:
        values = values * (old - terms.sampled_logp).clamp(max=math.log(config.importance_cap)).exp()
    loss = (values * terms.scale).sum()
    if config.kl_coefficient:
        assert terms.ref_logp is not None
        loss = loss + config.kl_coefficient * (_k3(terms.ref_logp - logp) * terms.penalty_scale).sum()
    if config.entropy_coefficient:
        loss = loss - config.entropy_coefficient * (entropy * terms.penalty_scale).sum()
    return loss


def _surrogate(logp: Tensor, old_logp: Tensor, terms: TokenTerms, config: LossConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, ratio, and whether the ratio was clipped, of each token."""
    advantages = terms.advantages
    log_ratio = logp - old_logp
    if config.surrogate == "gspo":
        # The token form: the sequence's ratio in value, and the token's own log-prob in gradient, so that a token's
        # weight is a weight on its gradient.
        log_ratio = logp - logp.detach()
        if terms.sequence_log_ratio is not None:
            log_ratio = log_ratio + terms.sequence_log_ratio
    ratio = _bounded(log_ratio).exp()
    bounded = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
    if config.surrogate == "cispo":  # arXiv 2506.13585: a clipped token still has a gradient
        return -advantages * bounded.detach() * logp, ratio, bounded != ratio
    unclipped = -advantages * ratio
    clipped = -advantages * bounded
    values = torch.maximum(unclipped, clipped)
    if config.dual_clip is not None:
        values = torch.where(advantages < 0, torch.minimum(values, -advantages * config.dual_clip), values)
    return values, ratio, clipped > unclipped


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _k3(gap: Tensor) -> Tensor:
    """exp(gap) - gap - 1: the k3 estimator of a KL divergence, gap = log of the other policy over the sampling one."""
    bounded = _bounded(gap)
    return bounded.exp() - bounded - 1


def token_scales(
    mask: Tensor, weights: Tensor, config: LossConfig, denominators: Denominators, max_tokens: int
) -> tuple[Tensor, Tensor]:
    """`scale` and `penalty_scale` of every token, both (B, T), 0 outside the mask.

    `config.aggregation` says how tokens are averaged: "sequence_mean" = each sequence's mean over its T_i tokens, then
    the mean over sequences (the paper); "token_mean" = Σ(w·mask·loss) / Σ(w·mask) (the authors' code);
    "constant_length" = each sequence's sum over its tokens divided by a constant, then the mean over sequences
    (Dr. GRPO, arXiv 2503.20783), so that a token counts the same in a short and in a long response.

    Args:
        mask: (B, T) true on sampled tokens.
        weights: (B, T) token weights.
        denominators: of the whole update.
        max_tokens: limit of a response, the constant of "constant_length" where `config.length` is None.
    """
    inside = mask.to(weights.dtype)
    if config.aggregation == "token_mean":
        return inside * weights / (denominators.weight + 1e-8), inside / (denominators.tokens + 1e-8)
    lengths = inside.sum(dim=1, keepdim=True).clamp_min(1)
    if config.aggregation == "constant_length":
        lengths = torch.full_like(lengths, config.length or max_tokens)
    plain = inside / (lengths * denominators.sequences)
    return plain * weights, plain


def sequence_log_ratios(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """(B,) GSPO's log s_i (arXiv 2507.18071): the mean over a sequence's tokens of logp - old_logp, all (B, T).

    Unweighted and without gradient: it says how far the policy has moved on the whole sequence.
    """
    gaps = (logp - old_logp).detach().masked_fill(~mask, 0.0)
    return gaps.sum(dim=1) / mask.sum(dim=1).clamp_min(1)


@torch.no_grad()
def loss_metrics(logp: Tensor, terms: TokenTerms, config: LossConfig) -> dict[str, float]:
    """Means over N tokens, and maxima (`…/max`); {} without tokens."""
    if not logp.numel():
        return {}
    old = logp if terms.old_logp is None else terms.old_logp
    _, ratio, clipped = _surrogate(logp, old, terms, config)
    far = ratio > config.dual_clip if config.dual_clip is not None else torch.zeros_like(clipped)
    metrics = {
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "clip_share": clipped.float().mean(),
        "dual_clip_share": ((terms.advantages < 0) & far).float().mean(),
        "kl/old": _k3(logp - old).mean(),
    }
    if config.kl_coefficient and terms.ref_logp is not None:
        metrics["kl/reference"] = _k3(terms.ref_logp - logp).mean()
    if terms.sampled_logp is not None:
        gap = _bounded(old - terms.sampled_logp)
        metrics |= {
            "mismatch/ratio_mean": gap.exp().mean(),
            "mismatch/ratio/max": gap.exp().max(),
            "mismatch/kl": _k3(gap).mean(),
        }
        if config.importance_cap is not None:
            metrics["mismatch/capped_share"] = (gap > math.log(config.importance_cap)).float().mean()
    return dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))
