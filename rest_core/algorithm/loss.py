"""The policy loss: a clipped surrogate, token by token, times the token's weight.

    objective = Σ_i (1/T_i) Σ_t w_it · c_it · min(ρ_it Â_i, clip(ρ_it, 1-ε, 1+ε) Â_i)

ρ = exp(logp - old_logp). Dual clip (arXiv 1912.09729) bounds the loss of a negative advantage at c·|Â|. c_it, truncated
importance sampling, corrects for an engine whose log-probs differ from the trainer's; without it, and with all weights
1, this is GRPO. Other surrogates stand in place of the minimum: GSPO's, with one ratio for the whole sequence, and
CISPO's, whose clipped ratio is a constant factor of the log-prob.

Everything that decides a token's share is known before the forward: `token_scales` folds weights, lengths and
denominators into one factor a token, so that the loss is a plain sum over tokens and any split gives the same gradient.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0  # e^20 is beyond any clip and still finite

Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]
Surrogate = Literal["clip", "gspo", "cispo"]


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


class TokenTerms(NamedTuple):
    """What the loss of each of N sampled tokens is made of, besides the policy's own values; all (N,)."""

    advantages: Tensor
    scale: Tensor  # of the surrogate: weight and denominator
    penalty_scale: Tensor  # of the KL penalty and the entropy bonus: the denominator alone
    old_logp: Tensor | None = None  # None: the policy itself, before its only update
    sampled_logp: Tensor | None = None  # of the engine that sampled, for importance sampling; None = no correction
    ref_logp: Tensor | None = None  # of the reference policy, for the KL penalty
    # GSPO: `sequence_log_ratios` of the token's sequence; None: 0, as it is before the only update
    sequence_log_ratio: Tensor | None = None

    def part(self, tokens: slice) -> TokenTerms:
        return TokenTerms(*(None if values is None else values[tokens] for values in self))  # type: ignore[arg-type]


class LossSettings(NamedTuple):
    clip: tuple[float, float] = (0.2, 0.2)  # ε_low, ε_high
    dual_clip: float | None = 3.0  # c > 1, or None for none
    importance_cap: float | None = None  # C ≥ 1 of min(exp(old_logp - sampled_logp), C); None = no correction
    kl_coefficient: float = 0.0  # k3 estimator, unweighted: it holds the whole policy, not only what the weights favour
    entropy_coefficient: float = 0.0  # unweighted likewise
    surrogate: Surrogate = "clip"  # "cispo" has no dual clip


class LossOutput(NamedTuple):
    loss: Tensor  # scalar
    metrics: dict[str, float]  # means over the tokens inside the mask; ratio/max is a maximum


def token_scales(
    mask: Tensor, weights: Tensor, aggregation: Aggregation, denominators: Denominators, length: int | None = None
) -> tuple[Tensor, Tensor]:
    """`scale` and `penalty_scale` of every token, both (B, T), 0 outside the mask.

    Args:
        mask: (B, T) true on sampled tokens.
        weights: (B, T) token weights.
        aggregation: "sequence_mean" = each sequence's mean over its T_i tokens, then the mean over sequences (the
            paper); "token_mean" = Σ(w·mask·loss) / Σ(w·mask) (the authors' code); "constant_length" = each
            sequence's sum over its tokens, divided by `length`, then the mean over sequences (Dr. GRPO, arXiv
            2503.20783), so that a token counts the same in a short and in a long response.
        denominators: of the whole update.
        length: of "constant_length" alone.
    """
    inside = mask.to(weights.dtype)
    if aggregation == "token_mean":
        return inside * weights / (denominators.weight + 1e-8), inside / (denominators.tokens + 1e-8)
    lengths = inside.sum(dim=1, keepdim=True).clamp_min(1)
    if aggregation == "constant_length":
        if length is None:
            raise ValueError("constant_length needs a length")
        lengths = torch.full_like(lengths, length)
    plain = inside / (lengths * denominators.sequences)
    return plain * weights, plain


def sequence_log_ratios(logp: Tensor, old_logp: Tensor, mask: Tensor) -> Tensor:
    """(B,) GSPO's log s_i (arXiv 2507.18071): the mean over a sequence's tokens of logp - old_logp, all (B, T).

    Unweighted and without gradient: it says how far the policy has moved on the whole sequence.
    """
    gaps = (logp - old_logp).detach().masked_fill(~mask, 0.0)
    return gaps.sum(dim=1) / mask.sum(dim=1).clamp_min(1)


def token_loss(logp: Tensor, entropy: Tensor | None, terms: TokenTerms, settings: LossSettings) -> Tensor:
    """The sum (a scalar) over N tokens of their loss; the sums of all parts of an update add up to its loss.

    Args:
        logp: (N,) log-probs of the sampled tokens under the policy that is trained, with gradient.
        entropy: (N,) policy entropy in nats with gradient, for the entropy bonus.
    """
    old = logp.detach() if terms.old_logp is None else terms.old_logp
    values, _, _ = _surrogate(logp, old, terms, settings)
    if settings.importance_cap is not None and terms.sampled_logp is not None:
        values = values * (old - terms.sampled_logp).clamp(max=math.log(settings.importance_cap)).exp()
    loss = (values * terms.scale).sum()
    if settings.kl_coefficient:
        if terms.ref_logp is None:
            raise ValueError("a KL penalty needs ref_logp")
        loss = loss + settings.kl_coefficient * (_k3(terms.ref_logp - logp) * terms.penalty_scale).sum()
    if settings.entropy_coefficient:
        if entropy is None:
            raise ValueError("an entropy bonus needs entropy")
        loss = loss - settings.entropy_coefficient * (entropy * terms.penalty_scale).sum()
    return loss


@torch.no_grad()
def token_metrics(logp: Tensor, terms: TokenTerms, settings: LossSettings) -> dict[str, float]:
    """Means over N tokens, and maxima (`…/max`); {} without tokens."""
    if not logp.numel():
        return {}
    old = logp if terms.old_logp is None else terms.old_logp
    _, ratio, clipped = _surrogate(logp, old, terms, settings)
    far = ratio > settings.dual_clip if settings.dual_clip is not None else torch.zeros_like(clipped)
    metrics = {
        "ratio/mean": ratio.mean(),
        "ratio/max": ratio.max(),
        "clip_share": clipped.float().mean(),
        "dual_clip_share": ((terms.advantages < 0) & far).float().mean(),
        "kl/old": _k3(logp - old).mean(),
    }
    if settings.kl_coefficient and terms.ref_logp is not None:
        metrics["kl/reference"] = _k3(terms.ref_logp - logp).mean()
    if terms.sampled_logp is not None:
        gap = _bounded(old - terms.sampled_logp)
        metrics |= {
            "mismatch/ratio_mean": gap.exp().mean(),
            "mismatch/ratio/max": gap.exp().max(),
            "mismatch/kl": _k3(gap).mean(),
        }
        if settings.importance_cap is not None:
            metrics["mismatch/capped_share"] = (gap > math.log(settings.importance_cap)).float().mean()
    return dict(zip(metrics, torch.stack([value.double() for value in metrics.values()]).tolist(), strict=True))


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    clip: float | tuple[float, float] = 0.2,
    dual_clip: float | None = 3.0,
    aggregation: Aggregation = "sequence_mean",
    denominators: Denominators | None = None,
    ref_logp: Tensor | None = None,
    kl_coefficient: float = 0.0,
    entropy: Tensor | None = None,
    entropy_coefficient: float = 0.0,
    sampled_logp: Tensor | None = None,
    importance_cap: float | None = None,
    surrogate: Surrogate = "clip",
    length: int | None = None,
) -> LossOutput:
    """Loss of one micro-batch of padded rows, for trainers that hold their log-probs as (B, T).

    Args:
        logp: (B, T) log-probs of the sampled tokens under the policy that is trained, with gradient.
        old_logp: (B, T) the same under the policy as it was when it sampled them.
        advantages: (B,) one a sequence, or (B, T).
        mask: (B, T) true on sampled tokens.
        weights: (B, T) token weights.
        denominators: of the whole update; None = of this micro-batch alone.
        ref_logp: (B, T) under the reference policy.
        entropy: (B, T) policy entropy in nats with gradient.
        sampled_logp: (B, T) as the engine gave them.
        surrogate: "clip" (PPO's, GRPO's), "gspo" or "cispo"; the last goes with `dual_clip=None`.
        length: of the aggregation "constant_length".
    """
    if surrogate == "cispo" and dual_clip is not None:
        raise ValueError("cispo has no dual clip: its ratio is bounded for negative advantages too; dual_clip=None")
    inside = mask.bool()
    over = denominators or Denominators.of(mask, weights)
    scale, penalty_scale = token_scales(mask, weights, aggregation, over, length)
    each = advantages[:, None].expand_as(logp) if advantages.dim() == 1 else advantages
    moved = None
    if surrogate == "gspo":
        moved = sequence_log_ratios(logp, old_logp, inside)[:, None].expand_as(logp)
    chosen = [
        None if values is None else values[inside]
        for values in (each, scale, penalty_scale, old_logp, sampled_logp, ref_logp, moved)
    ]
    terms = TokenTerms(*chosen)  # type: ignore[arg-type]
    settings = LossSettings(
        clip if isinstance(clip, tuple) else (clip, clip),
        dual_clip,
        importance_cap,
        kl_coefficient,
        entropy_coefficient,
        surrogate,
    )
    loss = token_loss(logp[inside], None if entropy is None else entropy[inside], terms, settings)
    return LossOutput(loss, token_metrics(logp[inside].detach(), terms, settings))


def _surrogate(
    logp: Tensor, old_logp: Tensor, terms: TokenTerms, settings: LossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, ratio, and whether the ratio was clipped, of each token."""
    (low, high), advantages = settings.clip, terms.advantages
    log_ratio = logp - old_logp
    if settings.surrogate == "gspo":
        # The token form: the sequence's ratio in value, and the token's own log-prob in gradient, so that a token's
        # weight is a weight on its gradient.
        log_ratio = logp - logp.detach()
        if terms.sequence_log_ratio is not None:
            log_ratio = log_ratio + terms.sequence_log_ratio
    ratio = _bounded(log_ratio).exp()
    bounded = ratio.clamp(1 - low, 1 + high)
    if settings.surrogate == "cispo":  # arXiv 2506.13585: a clipped token still has a gradient
        return -advantages * bounded.detach() * logp, ratio, bounded != ratio
    unclipped = -advantages * ratio
    clipped = -advantages * bounded
    values = torch.maximum(unclipped, clipped)
    if settings.dual_clip is not None:
        values = torch.where(advantages < 0, torch.minimum(values, -advantages * settings.dual_clip), values)
    return values, ratio, clipped > unclipped


def _bounded(log_ratio: Tensor) -> Tensor:
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _k3(gap: Tensor) -> Tensor:
    """exp(gap) - gap - 1: the k3 estimator of a KL divergence, gap = log of the other policy over the sampling one."""
    bounded = _bounded(gap)
    return bounded.exp() - bounded - 1
