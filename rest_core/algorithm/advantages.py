"""Group-relative advantages (GRPO, arXiv 2402.03300), in float64."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

AdvantageStd = Literal["group", "batch", "none"]

STD_EPSILON = 1e-6
# Rewards of a group that are this near each other, relative to the largest, are equal. Eight roundings of float32, so
# that a reward function that computes in it gives no signal where it means none.
RELATIVE_TOLERANCE = 1e-6
# And whatever their size: what is left where parts of a float64 reward cancel.
ABSOLUTE_TOLERANCE = 1e-12


def group_advantages(rewards: Tensor, *, std: AdvantageStd = "group", everyone: Tensor | None = None) -> Tensor:
    """Â = (r - mean) / (std + 1e-6), the mean that of the group; standard deviations are unbiased.

    Args:
        rewards: (P, G) rewards of G responses to each of P prompts.
        std: "group" = of the group's rewards (GRPO); "batch" = of r - mean over all groups of the step (REINFORCE++
            with a group baseline, arXiv 2501.03262); "none" = r - mean as it is (Dr. GRPO, arXiv 2503.20783).
        everyone: (P', G) the rewards of all processes, for "batch"; None = `rewards` are all there are.

    Returns:
        (P, G), float64; exactly 0 in a group without signal (`zero_variance`).
    """
    rewards = rewards.double()
    centred = _centred(rewards)  # (P, G)
    if std == "group":
        centred = centred / (rewards.std(dim=1, keepdim=True) + STD_EPSILON)
    elif std == "batch":
        centred = centred / (_centred(rewards if everyone is None else everyone.double()).std() + STD_EPSILON)
    return centred.masked_fill(zero_variance(rewards)[:, None], 0.0)


def _centred(rewards: Tensor) -> Tensor:
    return rewards - rewards.mean(dim=1, keepdim=True)


def zero_variance(rewards: Tensor) -> Tensor:
    """(P,) bool: groups that carry no signal, because all their rewards (P, G) are equal but for rounding."""
    rewards = rewards.double()
    spread = rewards.amax(dim=1) - rewards.amin(dim=1)
    return spread <= RELATIVE_TOLERANCE * rewards.abs().amax(dim=1) + ABSOLUTE_TOLERANCE
