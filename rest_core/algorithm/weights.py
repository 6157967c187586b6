"""Token weights: how much of each token's policy gradient is used (docs/method.md, "Weights").

A scheme gives every token a raw weight, by its region or by itself; `token_weights` then rescales each sequence so
that the mean over its tokens of positive weight is 1 (Σ_t w_t = T, the normalisation under which the paper bounds the
variance). All weights come from one call over the whole rollout, before any split into micro-batches.
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
    UniformWeights,
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
        FrequencyWeights(),
    )
}
SCHEMES = tuple(_DEFAULTS)
_TRAINED = (Region.FORMAT, Region.NAME, Region.ARGUMENTS, Region.THINK)


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
) -> Tensor:
    """Weight of every token of a rollout.

    Args:
        regions: (B, T) codes of `Region`.
        mask: (B, T) true on the sampled tokens that are trained.
        scheme: a scheme's name, or its settings.
        step: global step, counted from 1.
        total_steps: steps of the whole training; progress is ν = step / total_steps, at most 1.
        region_entropy: (len(Region),) running mean policy entropy of each region in nats, NaN where a region has not
            been seen yet; read by `paper`.
        token_entropy: (B, T) policy entropy in nats; read by `high_entropy`.
        token_frequency: (B, T) relative frequency of each sampled token in the rollout; read by `frequency`.

    Returns:
        (B, T) float32, 0 outside the mask; mean 1 over each row's tokens of positive weight.
    """
    settings = weight_settings(scheme)
    inside = mask.bool()
    if isinstance(settings, HighEntropyWeights):
        raw = _high_entropy(settings, inside, _needed(token_entropy, "token_entropy", settings))
    elif isinstance(settings, FrequencyWeights):
        raw = _frequency(settings, inside, _needed(token_frequency, "token_frequency", settings))
    else:
        raw = _region_table(settings, step, total_steps, region_entropy).to(regions.device)[regions]  # (B, T)
    return _rescale(raw * inside)


def _region_table(settings: WeightsConfig, step: int, total_steps: int, region_entropy: Tensor | None) -> Tensor:
    """(len(Region),) raw weight of each region."""
    if isinstance(settings, PaperWeights):
        entropy = _needed(region_entropy, "region_entropy", settings)
        return _paper_table(settings, min(step / total_steps, 1.0), entropy.float().cpu())
    table = torch.ones(len(Region))
    if isinstance(settings, OfficialWeights):
        ramp = 0.6 + 0.002 * step
        table[Region.FORMAT] = 1.0
        table[Region.NAME] = 1.2
        table[Region.ARGUMENTS] = min(1.2, ramp)
        table[Region.THINK] = min(1.0, ramp)
        table[[Region.RESPONSE, Region.OTHER]] = 0.0
    elif isinstance(settings, MaskOnlyWeights):
        table[[region for region in Region if region not in _TRAINED]] = 0.0
    elif isinstance(settings, NameBoostWeights):
        table[Region.NAME] = settings.boost
    return table


def _paper_table(settings: PaperWeights, progress: float, entropy: Tensor) -> Tensor:
    """ŵ = clip(1 / (1 - e^(-H)), w_min, w_max), moved by the curriculum; see the paper's variance bound.

    A region that has not been seen yet (H is NaN) starts from w_min: nothing says that it decides the reward.
    """
    table = (-1.0 / torch.expm1(-entropy.clamp_min(0.0))).clamp(settings.w_min, settings.w_max)
    table = torch.where(entropy.isnan(), torch.tensor(settings.w_min), table)
    if settings.curriculum:
        falling = table[Region.FORMAT] - settings.alpha_format * progress
        table[Region.FORMAT] = falling.clamp_min(settings.w_min)
        for region, slope in ((Region.ARGUMENTS, settings.alpha_arguments), (Region.THINK, settings.alpha_think)):
            table[region] = (table[region] + slope * progress).clamp_max(settings.w_max)
    table[[Region.RESPONSE, Region.OTHER]] = settings.floor
    return table


def _high_entropy(settings: HighEntropyWeights, inside: Tensor, entropy: Tensor) -> Tensor:
    """1 on the `top_share` of the rollout's tokens with the highest entropy, 0 elsewhere (arXiv 2506.01939)."""
    values = entropy[inside]
    if not values.numel():
        return torch.zeros_like(entropy, dtype=torch.float32)
    kept = max(1, round(settings.top_share * values.numel()))
    threshold = values.topk(kept).values[-1]
    return (entropy >= threshold).float()


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


def _rescale(raw: Tensor) -> Tensor:
    """Every row scaled to mean 1 over its positive entries; a row without any stays 0."""
    positive = (raw > 0).sum(dim=1, keepdim=True)  # (B, 1)
    return raw * (positive / raw.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny))


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
