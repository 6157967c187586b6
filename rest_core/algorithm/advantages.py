"""Group-relative advantages (GRPO, arXiv 2402.03300)."""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-6


def group_advantages(rewards: Tensor, *, divide_by_std: bool = True) -> Tensor:
    """Â = (r - mean) / (std + 1e-6) within each group, the standard deviation unbiased.

    Args:
        rewards: (P, G) rewards of G responses to each of P prompts.
        divide_by_std: False gives r - mean (Dr. GRPO, arXiv 2503.20783).

    Returns:
        (P, G); exactly 0 for a group whose rewards are all equal.
    """
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
    if divide_by_std:
        centred = centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)
    return torch.where(zero_variance(rewards)[:, None], torch.zeros_like(centred), centred)


def zero_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: groups that carry no signal because all their rewards are equal."""
    return (rewards == rewards[:, :1]).all(dim=1)
