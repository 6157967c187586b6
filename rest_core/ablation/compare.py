"""Schemes compared over their seeds: mean and interval a scheme, paired differences from the baseline.

The unit is a trial (a seed), not a question: the comparison asks whether a scheme trains better policies, and only a
training with another seed repeats that. Trials with the same seed see the same prompts in the same order and draw with
the same random numbers, so differences are taken within a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from rest_core.ablation.collect import TrialResult
from rest_core.evaluation.statistics import Interval, holm, mean_is_zero, t_interval


@dataclass(frozen=True)
class Summary:
    """One figure of one scheme."""

    values: Mapping[int, float]  # by seed
    mean: float
    deviation: float | None  # sample standard deviation over seeds; None of one seed
    interval: Interval | None  # of the mean; None where the values say nothing of their spread


@dataclass(frozen=True)
class Difference:
    """One figure of one scheme minus the baseline's, over the seeds that both have."""

    values: Mapping[int, float]  # by seed
    mean: float
    interval: Interval | None
    p: float | None  # two-sided, of a mean of 0
    p_holm: float | None  # adjusted for the number of schemes


@dataclass(frozen=True)
class Comparison:
    """One figure of all schemes that have it."""

    metric: str
    schemes: Mapping[str, Summary]
    differences: Mapping[str, Difference]  # by scheme, the baseline left out

    @property
    def is_share(self) -> bool:
        """Whether the figure is a fraction of questions."""
        return self.metric.startswith(("bfcl/", "api_bank/", "task/")) and "/count/" not in self.metric

    def ordered(self, baseline: str) -> list[str]:
        """The schemes as they are shown: the baseline first, then the best."""
        return sorted(self.schemes, key=lambda name: (name != baseline, -self.schemes[name].mean))

    def row(self, scheme: str) -> list[str]:
        """For people: name, number of seeds, mean, its interval, difference from the baseline, its interval."""
        one, difference = self.schemes[scheme], self.differences.get(scheme)
        row = [scheme, str(len(one.values)), self._value(one.mean), _bounds(one.interval, self._value)]
        if difference is None:
            return [*row, "", ""]
        return [*row, self._difference(difference.mean), _bounds(difference.interval, self._difference)]

    def p(self, scheme: str) -> str:
        """For people: the adjusted p-value, nothing where there is none."""
        difference = self.differences.get(scheme)
        if difference is None or difference.p_holm is None:
            return ""
        return "< 0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}"

    def by_seed(self, scheme: str) -> str:
        """For people: the scheme's values."""
        return ", ".join(f"{seed}: {self._value(v)}" for seed, v in sorted(self.schemes[scheme].values.items()))

    def _value(self, value: float) -> str:
        return f"{value:.1%}" if self.is_share else f"{value:.3f}"

    def _difference(self, value: float) -> str:
        return f"{100 * value:+.1f} pp" if self.is_share else f"{value:+.3f}"


def compare(results: Sequence[TrialResult], metric: str, *, baseline: str, confidence: float) -> Comparison | None:
    """The comparison of one figure; None where no trial has it."""
    values: dict[str, dict[int, float]] = {}
    for result in results:
        if metric in result.metrics:
            values.setdefault(result.trial.name, {})[result.trial.seed] = result.metrics[metric]
    if not values:
        return None
    schemes = {name: _summary(by_seed, confidence) for name, by_seed in values.items()}
    apart: dict[str, dict[int, float]] = {}
    base = values.get(baseline, {})
    for name, by_seed in values.items():
        common = {seed: value - base[seed] for seed, value in by_seed.items() if seed in base}
        if name != baseline and common:
            apart[name] = common
    p_values = {name: mean_is_zero(list(by_seed.values())) for name, by_seed in apart.items()}
    # Equal differences cannot be tested, and are one of the questions that were asked all the same.
    family = {name: 1.0 if p is None else p for name, p in p_values.items() if len(apart[name]) > 1}
    adjusted = {name: p for name, p in holm(family).items() if p_values[name] is not None}
    differences = {
        name: Difference(
            by_seed,
            mean(by_seed.values()),
            t_interval(list(by_seed.values()), confidence),
            p_values[name],
            adjusted.get(name),
        )
        for name, by_seed in apart.items()
    }
    return Comparison(metric, schemes, differences)


def _summary(by_seed: Mapping[int, float], confidence: float) -> Summary:
    values = list(by_seed.values())
    return Summary(by_seed, mean(values), stdev(values) if len(values) > 1 else None, t_interval(values, confidence))


def _bounds(interval: Interval | None, shown: Callable[[float], str]) -> str:
    return "–" if interval is None else f"{shown(interval.low)} to {shown(interval.high)}"
