"""How sure an accuracy is."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist


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
