"""Token weights: how much of each token's policy gradient is used (docs/method.md, "Weights").

A scheme gives every token a raw weight, by its region or by itself; `token_weights` then rescales each sequence so
that the mean over its trained tokens is 1 (Σ_t w_t = T, the normalisation under which the paper bounds the variance).
All weights come from one call over the whole rollout, before any split into micro-batches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rest_core.algorithm.regions import Region
from rest_core.config import (
    FrequencyWeights,
    HighEntropyWeights,
    MaskOnlyWeights,
    NameBoostWeights,
    OfficialWeights,
    PaperWeights,
    TokenEntropyWeights,
    UniformWeights,
    WeightMean,
    WeightsConfig,
)
from rest_core.errors import UserError, nearest

_DEFAULTS: dict[str, WeightsConfig] = {
    settings.scheme: settings
    for settings in (
        PaperWeights(),
        OfficialWeights(),
        UniformWeights(),
        MaskOnlyWeights(),
        NameBoostWeights(),
        HighEntropyWeights(),
        TokenEntropyWeights(),
        FrequencyWeights(),
    )
}
SCHEMES = tuple(_DEFAULTS)
_REWEIGHTED = (Region.FORMAT, Region.NAME, Region.ARGUMENTS, Region.THINK)


def token_weights(
    regions: Tensor,
    mask: Tensor,
    *,
    scheme: str | WeightsConfig,
    step: int,
    total_steps: int,
    region_entropy: Tensor | None = None,
    token_entropy: Tensor | None = None,
    token_frequency: Tensor | None = None,
    mean: WeightMean = "trained",
) -> Tensor:
    """Weight of every token of a rollout.

    Args:
        regions: (B, T) codes of `Region`.
        mask: (B, T) true on the sampled tokens that are trained.
        scheme: a scheme's name, or its settings.
        step: global step, counted from 1.
        total_steps: steps of the whole training; progress is ν = step / total_steps, at most 1.
        region_entropy: (len(Region),) mean policy entropy of each region in nats, NaN where a region has not been
            seen; read by `paper`.
        token_entropy: (B, T) policy entropy in nats; read by `high_entropy` and `token_entropy`.
        token_frequency: (B, T) relative frequency of each sampled token in the rollout; read by `frequency`.
        mean: "trained" = weights have mean 1 over each row's tokens inside the mask (`high_entropy`, which chooses its
            tokens among all of the rollout's, over all of them); "weighted" = over each row's tokens of positive
            weight, as the authors' code has it.

    Returns:
        (B, T) float32, 0 outside the mask.
    """
    settings = weight_settings(scheme)
    inside = mask.bool()
    if isinstance(settings, PaperWeights):
        raw = _paper(settings, regions, inside, step / total_steps, _needed(region_entropy, "region_entropy", settings))
    elif isinstance(settings, HighEntropyWeights):
        raw = _high_entropy(settings, inside, _needed(token_entropy, "token_entropy", settings))
    elif isinstance(settings, TokenEntropyWeights):
        raw = _entropy_weight(settings, _needed(token_entropy, "token_entropy", settings).float())
    elif isinstance(settings, FrequencyWeights):
        raw = _frequency(settings, inside, _needed(token_frequency, "token_frequency", settings))
    else:
        raw = _region_table(settings, step).to(regions.device)[regions]  # (B, T)
    over = inside if mean == "trained" else inside & (raw > 0)
    return _rescale(raw * inside, over, whole=mean == "trained" and isinstance(settings, HighEntropyWeights))


def in_reweighted_region(regions: Tensor) -> Tensor:
    """(B, T) bool: of the regions that the paper weighs by their entropy, (B, T) codes of `Region` given."""
    return torch.tensor([region in _REWEIGHTED for region in Region], device=regions.device)[regions]


def reads_token_entropies(settings: WeightsConfig) -> bool:
    """Whether a scheme reads the entropy of every token, in every step."""
    return isinstance(settings, HighEntropyWeights | TokenEntropyWeights)


def _region_table(settings: WeightsConfig, step: int) -> Tensor:
    """(len(Region),) raw weight of each region."""
    table = torch.ones(len(Region))
    if isinstance(settings, OfficialWeights):
        ramp = 0.6 + 0.002 * step
        table[Region.FORMAT] = 1.0
        table[Region.NAME] = 1.2
        table[Region.ARGUMENTS] = min(1.2, ramp)
        table[Region.THINK] = min(1.0, ramp)
        table[[Region.RESPONSE, Region.OTHER]] = 0.0
    elif isinstance(settings, MaskOnlyWeights):
        table[[region for region in Region if region not in _REWEIGHTED]] = 0.0
    elif isinstance(settings, NameBoostWeights):
        table[Region.NAME] = settings.boost
    return table


def _paper(settings: PaperWeights, regions: Tensor, inside: Tensor, progress: float, entropy: Tensor) -> Tensor:
    """(B, T) raw weights: the paper's on its four regions, `floor` of the row's mean of these on all other tokens.

    The paper says nothing about scaffolding, the end of a response and what is malformed. With the mean they weigh what
    they weigh in plain GRPO, and the rescaled weights of the four regions do not depend on how many of them there are.
    """
    table = _paper_table(settings, min(progress, 1.0), entropy.float().cpu()).to(regions.device)
    raw = table[regions]  # (B, T)
    reweighted = in_reweighted_region(regions) & inside
    count = reweighted.sum(dim=1, keepdim=True)  # (B, 1)
    mean = torch.where(count > 0, (raw * reweighted).sum(dim=1, keepdim=True) / count.clamp_min(1), 1.0)
    return torch.where(reweighted, raw, settings.floor * mean)


def _paper_table(settings: PaperWeights, progress: float, entropy: Tensor) -> Tensor:
    """(len(Region),) weight of the four regions at progress ν: their entropy's, moved by the curriculum.

    A region that has not been seen (H is NaN) starts from w_min: it has no tokens, so nothing is weighted by it.
    """
    table = torch.where(entropy.isnan(), torch.tensor(settings.w_min), _entropy_weight(settings, entropy))
    if settings.curriculum:
        falling = table[Region.FORMAT] - settings.alpha_format * progress
        table[Region.FORMAT] = falling.clamp_min(settings.w_min)
        for region, slope in ((Region.ARGUMENTS, settings.alpha_arguments), (Region.THINK, settings.alpha_think)):
            table[region] = (table[region] + slope * progress).clamp_max(settings.w_max)
        # "The name stays high": never below what grows beside it, however unsure the policy is of names.
        table[Region.NAME] = table[[Region.NAME, Region.ARGUMENTS, Region.THINK]].max()
    return table


def _entropy_weight(settings: PaperWeights | TokenEntropyWeights, entropy: Tensor) -> Tensor:
    """Weight of entropies in nats: 1 / (1 - e^(-H)), least variance of the paper's bound, or 1 / H; clipped."""
    known = entropy.clamp_min(0.0)
    weight = 1.0 / known if settings.rule == "inverse" else -1.0 / torch.expm1(-known)
    return weight.clamp(settings.w_min, settings.w_max)


def _high_entropy(settings: HighEntropyWeights, inside: Tensor, entropy: Tensor) -> Tensor:
    """1 on the `top_share` of the rollout's tokens with the highest entropy, 0 elsewhere (arXiv 2506.01939).

    Of equal tokens those of earlier rows are kept, so that ties keep no more than their share.
    """
    values = entropy[inside]
    kept = max(1, round(settings.top_share * values.numel()))
    chosen = torch.zeros_like(values, dtype=torch.float32)
    chosen[values.argsort(descending=True, stable=True)[:kept]] = 1.0
    raw = torch.zeros_like(entropy, dtype=torch.float32)
    raw[inside] = chosen
    return raw


def _frequency(settings: FrequencyWeights, inside: Tensor, frequency: Tensor) -> Tensor:
    """Frequent tokens more, rare ones less: mean surprisal / own surprisal, clipped.

    The analogue of the entropy weight with the corpus in place of the policy: a token that is common in the rollout
    is taken as predictable, whatever the policy thinks of it.
    """
    surprisal = -frequency.clamp_min(torch.finfo(torch.float32).tiny).log()
    mean = surprisal[inside].mean() if inside.any() else surprisal.new_tensor(0.0)
    return (mean / surprisal.clamp_min(1e-6)).clamp(settings.w_min, settings.w_max)


def relative_frequency(ids: Tensor, mask: Tensor) -> Tensor:
    """(B, T) share of each token's id among the ids (B, T) inside the mask (B, T)."""
    _, inverse, counts = torch.unique(ids[mask.bool()], return_inverse=True, return_counts=True)
    shares = torch.zeros(ids.shape, dtype=torch.float32, device=ids.device)
    shares[mask.bool()] = (counts.float() / max(1, int(counts.sum())))[inverse]
    return shares


def _rescale(raw: Tensor, over: Tensor, *, whole: bool) -> Tensor:
    """Scaled to mean 1 over the tokens `over` (B, T), row by row or (`whole`) all together; what is all 0 stays 0."""
    dimensions = (0, 1) if whole else (1,)
    count, total = (values.sum(dim=dimensions, keepdim=True) for values in (over, raw))
    return torch.where(total > 0, raw * count / total, 0.0)


def weight_settings(scheme: str | WeightsConfig) -> WeightsConfig:
    """A scheme's settings; its defaults where only the name is given."""
    if not isinstance(scheme, str):
        return scheme
    try:
        return _DEFAULTS[scheme]
    except KeyError:
        raise UserError(
            f"unknown weight scheme {scheme!r}{nearest(scheme, SCHEMES)} (known: {', '.join(SCHEMES)})"
        ) from None


def _needed(value: Tensor | None, name: str, settings: WeightsConfig) -> Tensor:
    if value is None:
        raise ValueError(f"the weight scheme {settings.scheme!r} needs {name}")
    return value
