"""How sure an accuracy is, and whether one model is better than another on the same items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval, both included."""

    low: float
    high: float


def wilson_interval(correct: int, total: int, confidence: float = 0.95) -> Interval:
    """Score interval of a binomial proportion (E. B. Wilson, JASA 22, 1927); (0, 1) where nothing was counted.

    Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at `total` correct.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"{correct} correct of {total}")
    if total == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = correct / total
    centre = share + z * z / (2 * total)
    margin = z * sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return Interval(max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale))


@dataclass(frozen=True)
class PairedComparison:
    """A challenger against an incumbent on the same items."""

    items: int
    difference: float  # accuracy of the challenger minus accuracy of the incumbent
    interval: Interval  # of the difference, by paired bootstrap
    only_challenger: int  # items that only the challenger got right
    only_incumbent: int
    p_value: float  # exact McNemar test, two-sided


def compare_paired(
    challenger: Sequence[bool],
    incumbent: Sequence[bool],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two models by their right and wrong answers to the same items, in the same order.

    Only the items on which they differ carry information about which is better. The p-value is the exact McNemar
    test's (a two-sided binomial test of the discordant pairs at 1/2); the interval is the percentile interval of the
    paired bootstrap. Resampling pairs is drawing how many of each kind occur, so it is done on counts.
    """
    if len(challenger) != len(incumbent):
        raise ValueError(f"{len(challenger)} answers against {len(incumbent)}: not the same items")
    if not challenger:
        raise ValueError("no items to compare")
    total = len(challenger)
    gains = sum(c and not i for c, i in zip(challenger, incumbent, strict=True))
    losses = sum(i and not c for c, i in zip(challenger, incumbent, strict=True))
    shares = np.array([gains, losses, total - gains - losses]) / total  # (3,)
    drawn = np.random.default_rng(seed).multinomial(total, shares, size=resamples)  # (R, 3)
    tail = (1 - confidence) / 2
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / total, [tail, 1 - tail])
    return PairedComparison(
        items=total,
        difference=(gains - losses) / total,
        interval=Interval(float(low), float(high)),
        only_challenger=gains,
        only_incumbent=losses,
        p_value=_mcnemar_exact(gains, losses),
    )


def _mcnemar_exact(gains: int, losses: int) -> float:
    discordant = gains + losses
    tail = sum(comb(discordant, k) for k in range(min(gains, losses) + 1))
    return float(min(1.0, 2 * tail / 2**discordant))
