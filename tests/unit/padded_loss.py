"""The loss of padded rows, as other trainers hold them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from rest_core.algorithm.loss import (
    Denominators,
    TokenTerms,
    loss_metrics,
    policy_loss,
    sequence_log_ratios,
    token_scales,
)
from rest_core.config import LossConfig


def padded_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    denominators: Denominators | None = None,
    sampled_logp: Tensor | None = None,
    ref_logp: Tensor | None = None,
    entropy: Tensor | None = None,
    **config: Any,
) -> tuple[Tensor, dict[str, float]]:
    """Loss and metrics of rows (B, T), advantages (B,) or (B, T); `config` are fields of `LossConfig`."""
    settings = LossConfig(**config)
    inside = mask.bool()
    scales = token_scales(mask, weights, settings, denominators or Denominators.of(mask, weights), max_tokens=1)
    each = advantages[:, None].expand_as(logp) if advantages.dim() == 1 else advantages
    moved = sequence_log_ratios(logp, old_logp, inside)[:, None].expand_as(logp)
    values = (each, *scales, old_logp, sampled_logp, ref_logp, moved)
    terms = TokenTerms(*(None if value is None else value[inside] for value in values))  # type: ignore[arg-type]
    loss = policy_loss(logp[inside], logp[inside] if entropy is None else entropy[inside], terms, settings)
    return loss, loss_metrics(logp[inside], terms, settings)
