"""Accuracies and their averages, how sure they are, and how sure their differences and means over seeds are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

# scipy.stats takes a second to import: the functions do it.

RESAMPLES = 10_000
_SEED = 20_250_921
_Z = 1.959964  # of a 95 % interval

Tally = Mapping[float, int]
"""How many items have each value."""


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval, both included."""

    low: float
    high: float

    def excludes(self, value: float) -> bool:
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Accuracy:
    """How many answers are right."""

    correct: int
    total: int  # at least 1

    @property
    def value(self) -> float:
        return self.correct / self.total

    @property
    def tally(self) -> Tally:
        return {0.0: self.total - self.correct, 1.0: self.correct}

    @cached_property
    def interval(self) -> Interval:
        """95 % score interval of a binomial proportion (E. B. Wilson, JASA 22, 1927).

        Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at `total` correct.
        """
        from scipy import stats

        return _interval(stats.binomtest(self.correct, self.total).proportion_ci(method="wilson"))


@dataclass(frozen=True)
class Average:
    """A weighted mean of accuracies."""

    parts: Mapping[str, Accuracy]
    weights: Mapping[str, float]  # by part; their sum is 1

    @property
    def value(self) -> float:
        return math.fsum(weight * self.parts[name].value for name, weight in self.weights.items())

    @property
    def total(self) -> int:
        return sum(self.parts[name].total for name in self.weights)

    @cached_property
    def interval(self) -> Interval:
        """95 % interval by `stratified_interval`, with the parts as strata."""
        return stratified_interval((weight, self.parts[name].tally) for name, weight in self.weights.items())


@dataclass(frozen=True)
class Mean:
    """A mean over items of which each has a value from 0 to 1, such as the share of its samples that are right."""

    tally: Tally

    @property
    def value(self) -> float:
        return math.fsum(value * count for value, count in self.tally.items()) / self.total

    @property
    def total(self) -> int:
        return sum(self.tally.values())

    @cached_property
    def interval(self) -> Interval:
        """95 % interval by `stratified_interval`, with one stratum."""
        return stratified_interval([(1.0, self.tally)])


Estimate = Accuracy | Average | Mean


def stratified_interval(strata: Iterable[tuple[float, Tally]], low: float = 0.0, high: float = 1.0) -> Interval:
    """95 % percentile interval of Σ weight × mean, by a bootstrap of the items within each stratum.

    From n items n − 1 are drawn with replacement, which makes the variance of each mean unbiased (P. J. McCarthy and
    C. B. Snowden, Vital and Health Statistics 2 (95), 1985); categories of a few questions would get too narrow an
    interval otherwise. The draws are seeded: the same tallies give the same interval.

    Where all items of each stratum are equal, resampling says nothing. The interval then reaches z² / (n + z²) to both
    sides, as Wilson's does for 0 of n, with n = 1 / Σ (weight² / items).

    Args:
        strata: weight, and how many items have each value; a stratum has at least one item.
        low, high: bounds of a value.
    """
    import numpy as np

    generator = np.random.default_rng(_SEED)
    resampled, value, inverse = np.zeros(RESAMPLES), 0.0, 0.0
    for weight, tally in strata:
        values, counts = np.array(list(tally), float), np.array(list(tally.values()), float)
        items = float(counts.sum())
        drawn = max(1, int(items) - 1)
        resampled += weight * (generator.multinomial(drawn, counts / items, RESAMPLES) @ values) / drawn
        value += weight * float(counts @ values) / items
        inverse += weight**2 / items
    if np.ptp(resampled) > 1e-12:
        return Interval(*np.quantile(resampled, (0.025, 0.975)).tolist())
    reach = _Z**2 / (1 / inverse + _Z**2)
    return Interval(max(low, value - reach), min(high, value + reach))


def paired_interval(both: int, gained: int, lost: int, neither: int) -> Interval:
    """95 % interval of the difference of two accuracies on the same items, at least one (R. G. Newcombe, Statistics in
    Medicine 17, 1998, 2635–2650, method 10).

    Made of the Wilson intervals of both, it has a width where no answer has changed, too.

    Args:
        both, gained, lost, neither: items that are right in both, in the second only, in the first only, in neither.
    """
    total = both + gained + lost + neither
    first, second = Accuracy(both + lost, total), Accuracy(both + gained, total)
    margins = first.correct * (total - first.correct) * second.correct * (total - second.correct)
    covariance: float = both * neither - gained * lost
    if covariance > 0:
        covariance = max(covariance - total / 2, 0)
    correlation = covariance / math.sqrt(margins) if margins else 0.0

    def reach(down: float, up: float) -> float:
        return math.sqrt(max(0.0, down**2 - 2 * correlation * down * up + up**2))

    difference = second.value - first.value
    below = reach(second.value - second.interval.low, first.interval.high - first.value)
    above = reach(second.interval.high - second.value, first.value - first.interval.low)
    return Interval(difference - below, difference + above)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided p-value of McNemar's test: are gains as likely as losses? 1 where no answer has changed."""
    if gained + lost == 0:
        return 1.0
    from scipy import stats

    return float(stats.binomtest(gained, gained + lost).pvalue)


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval | None:
    """Student's confidence interval of the mean of independent values; None where they have no spread.

    Exact for normal values, at any number of them (Student, Biometrika 6, 1908). With the three to ten values of an
    ablation a bootstrap of the mean is too narrow: it draws from the few values that it was given.
    """
    if _without_spread(values):
        return None
    from scipy import stats

    return _interval(stats.ttest_1samp(values, 0).confidence_interval(confidence))


def mean_is_zero(values: Sequence[float]) -> float | None:
    """Two-sided p-value of the t-test that values (paired differences) have mean 0; None where they have no spread."""
    if _without_spread(values):
        return None
    from scipy import stats

    return float(stats.ttest_1samp(values, 0).pvalue)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for being several: the smaller stay comparable with one significance level (S. Holm, 1979)."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = highest
    return adjusted


def _interval(found: tuple[float, float]) -> Interval:
    return Interval(float(found[0]), float(found[1]))


def _without_spread(values: Sequence[float]) -> bool:
    """One value, or equal ones: accuracies of few questions often are, and differ by rounding at most."""
    return len(values) < 2 or max(values) - min(values) <= 1e-9 * max(1.0, *map(abs, values))
