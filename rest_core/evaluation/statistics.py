"""An accuracy, how sure it is, and how sure a mean over seeds is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist, mean, stdev


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
class Score:
    """How many items of a category are right."""

    correct: int
    total: int  # at least 1

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.total)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's confidence interval of the mean of independent values; None where they say nothing of their spread.

    Exact for normal values, at any number of them (Student, Biometrika 6, 1908). With the three to ten values of an
    ablation a bootstrap of the mean is too narrow: it draws from the few values that it was given.
    """
    if _without_spread(values):
        return None
    from scipy import stats

    centre = mean(values)
    margin = float(stats.t.ppf((1 + confidence) / 2, len(values) - 1)) * stdev(values) / sqrt(len(values))
    return Interval(centre - margin, centre + margin)


def mean_is_zero(values: Sequence[float]) -> float | None:
    """Two-sided p-value of the t-test that values (paired differences) have mean 0.

    None where the values say nothing of their spread.
    """
    if _without_spread(values):
        return None
    from scipy import stats

    t = mean(values) / (stdev(values) / sqrt(len(values)))
    return float(2 * stats.t.sf(abs(t), len(values) - 1))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for being several: the smaller stay comparable with one significance level (S. Holm, 1979)."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = highest
    return adjusted


def _without_spread(values: Sequence[float]) -> bool:
    """One value, or equal ones: accuracies of few questions often are, and differ by rounding at most."""
    return len(values) < 2 or max(values) - min(values) <= 1e-9 * max(1.0, *map(abs, values))
