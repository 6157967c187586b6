"""An accuracy, how sure it is, and how sure a mean over seeds is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

# scipy.stats takes a second to import: the functions do it.


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class Accuracy:
    """How many answers are right."""

    correct: int
    total: int  # at least 1

    @property
    def value(self) -> float:
        return self.correct / self.total

    @cached_property
    def interval(self) -> Interval:
        """95 % score interval of a binomial proportion (E. B. Wilson, JASA 22, 1927).

        Unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at `total` correct.
        """
        from scipy import stats

        return _interval(stats.binomtest(self.correct, self.total).proportion_ci(method="wilson"))


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
