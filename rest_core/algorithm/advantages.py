"""Group-relative advantages (GRPO, arXiv 2402.03300), in float64."""

from __future__ import annotations

from torch import Tensor

STD_EPSILON = 1e-6
# Rewards of a group that are this near each other, relative to the largest, are equal. Eight roundings of float32, so
# that a reward function that computes in it gives no signal where it means none.
RELATIVE_TOLERANCE = 1e-6
# And whatever their size: what is left where parts of a float64 reward cancel.
ABSOLUTE_TOLERANCE = 1e-12


def group_advantages(rewards: Tensor, *, divide_by_std: bool = True) -> Tensor:
    """Â = (r - mean) / (std + 1e-6) within each group, the standard deviation unbiased.

    Args:
        rewards: (P, G) rewards of G responses to each of P prompts.
        divide_by_std: False gives r - mean (Dr. GRPO, arXiv 2503.20783).

    Returns:
        (P, G), float64; exactly 0 in a group without signal (`zero_variance`).
    """
    rewards = rewards.double()
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # (P, G)
    if divide_by_std:
        centred = centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)
    return centred.masked_fill(zero_variance(rewards)[:, None], 0.0)


def zero_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: groups that carry no signal, because all their rewards (P, G) are equal but for rounding."""
    rewards = rewards.double()
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    return spread <= RELATIVE_TOLERANCE * rewards.abs().amax(dim=1) + ABSOLUTE_TOLERANCE
