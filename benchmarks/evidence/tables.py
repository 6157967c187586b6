"""The tables of docs/evidence.md, from the rows of trials and the measurements of gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean, median, variance
from typing import Any

import numpy as np

from rest_core.ablation.collect import TrialResult
from rest_core.ablation.compare import Comparison, compare
from rest_core.ablation.settings import Trial
from rest_core.config import UniformWeights

Rows = Sequence[Mapping[str, Any]]
BASELINE, REST, CONFIDENCE = "uniform", "paper", 0.95
PRIMARY = "task/last/call_accuracy"
TUNED = ("learning-rates", "paper-settings")  # parts that settings are chosen by
COMPARED = ("comparison", "controls", "sft")  # parts whose trials stand beside each other
SUPERVISED = ("sft", "tsft", "rsft")  # without RL: nothing makes a pair of their seeds and others
MARGIN = 0.03  # the difference that matters, and the half width that is aimed at
FIRST, MOST = 8, 16  # pairs: of the first stage, and at most
LAST = 5  # steps at the end of a training that are averaged, and the window that smooths its curves
HELD_OUT = ("task/call_accuracy", "task/irrelevance_accuracy")
REGIONS = ("format", "name", "arguments", "think", "response", "other")
_DRAWS = 2000


def derived(row: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a trial, and those that follow from its curves."""
    found = dict(row["figures"])
    curves = row.get("curves", {})
    for name, values in curves.items():
        last = [value for value in values[-LAST:] if value is not None]
        if last and name.startswith(("reward/", "response/", "entropy/")):
            found[f"last {name}"] = fmean(last)
        steps = [(a, b) for a, b in pairwise(values) if a is not None and b is not None]
        if name.startswith("entropy/") and steps:
            found[f"change {name}"] = fmean(abs(b - a) for a, b in steps)
    if "reward/total" in curves:
        found["mean reward/total"] = fmean(curves["reward/total"])
    return found


def compared(rows: Rows, metric: str, baseline: str = BASELINE, parts: Iterable[str] = COMPARED) -> Comparison | None:
    """One figure of the trials of some parts, by scheme.

    Raises:
        ValueError: a scheme has a seed twice, or a pair was not trained on the same kind of machine.
    """
    results, machines = [], {}
    for row in (row for row in rows if row["part"] in set(parts)):
        scheme, seed = row["scheme"], row["seed"]
        if (scheme, seed) in machines:
            raise ValueError(f"{scheme} has seed {seed} in two parts")
        machines[scheme, seed] = row.get("machine")
        results.append(TrialResult(Trial(name=scheme, seed=seed, weights=UniformWeights()), derived(row)))
    for (scheme, seed), machine in machines.items():
        if machines.get((baseline, seed), machine) != machine and scheme not in SUPERVISED:
            raise ValueError(f"{scheme} and {baseline} of seed {seed} were trained on different machines: no pair")
    return compare(results, metric, baseline=baseline, confidence=CONFIDENCE)


def comparison(found: Comparison | None, baseline: str = BASELINE) -> list[str]:
    """A table a figure: schemes, seeds, mean, and the paired difference from the baseline."""
    if found is None:
        return ["Not measured yet."]
    head = ("scheme", "seeds", "mean", "95 % interval", f"minus {baseline}", "95 % interval", "p (Holm)")
    return table(head, [[*found.row(name), found.p(name)] for name in found.ordered(baseline)])


def metrics(rows: Rows, names: Mapping[str, str], schemes: Sequence[str]) -> list[str]:
    """Several figures of some schemes, a row each: the means, and the last scheme's difference from the first."""
    body = []
    for metric, label in names.items():
        found = compared([row for row in rows if row["scheme"] in schemes], metric, schemes[0], ("comparison",))
        if found is None or any(name not in found.schemes for name in schemes):
            continue
        means = [found.row(name)[2] for name in schemes]
        body.append([label, *means, *found.row(schemes[-1])[4:]])
    head = ("figure", *schemes, "difference", "95 % interval")
    return table(head, body) if body else ["Not measured yet."]


def policies(rows: Rows, names: Mapping[str, str]) -> list[str]:
    """Means of some figures by policy, with the number of trials."""
    schemes: dict[str, list[dict[str, float]]] = {}
    for row in rows:
        if row["part"] in ("start", *COMPARED):
            schemes.setdefault(row["scheme"], []).append(derived(row))
    body = []
    for scheme, found in schemes.items():
        cells = [[one[metric] for one in found if metric in one] for metric in names]
        body.append([scheme, str(len(found)), *(f"{fmean(values):.1%}" if values else "–" for values in cells)])
    return table(("policy", "seeds", *names.values()), body) if body else ["Not measured yet."]


def duration(rows: Rows) -> list[str]:
    """How long the steps of a training took, by machine."""
    machines: dict[str, list[int]] = {}
    for row in rows:
        if row["part"] in (*TUNED, *COMPARED) and "seconds" in row:
            machines.setdefault(row["machine"], []).append(row["seconds"])
    body = [
        [machine, str(len(found)), f"{median(found) / 60:.1f}", f"{min(found) / 60:.1f} to {max(found) / 60:.1f}"]
        for machine, found in sorted(machines.items())
    ]
    return table(("machine", "trainings", "minutes (median)", "all"), body) if body else ["Not measured yet."]


def tuning(rows: Rows, part: str) -> list[str]:
    """What is chosen by, the mean reward of the last steps, by setting and seed."""
    chosen = [row for row in rows if row["part"] == part]
    seeds = sorted({row["seed"] for row in chosen})
    by_name: dict[str, dict[int, float]] = {}
    for row in chosen:
        by_name.setdefault(row["scheme"], {})[row["seed"]] = derived(row)["last reward/total"]
    body = [
        [name, *(f"{values[seed]:.2f}" if seed in values else "–" for seed in seeds), f"{fmean(values.values()):.2f}"]
        for name, values in sorted(by_name.items(), key=lambda one: -fmean(one[1].values()))
    ]
    return table(("setting", *(f"seed {seed}" for seed in seeds), "mean"), body) if body else ["Not measured yet."]


def gains(rows: Rows) -> list[str]:
    """What each training of the part `gain` has changed: held-out accuracies before it and after it, and the reward."""
    body = []
    for row in (row for row in rows if row["part"] == "gain"):
        reward = row["curves"]["reward/total"]
        cells = [f"{one[1]:.1%}" for name in HELD_OUT for one in (row["measured"][name][0], row["measured"][name][-1])]
        body.append([str(row["seed"]), *cells, f"{fmean(reward[:LAST]):.2f}", f"{fmean(reward[-LAST:]):.2f}"])
    accuracies = ("calls, before", "calls, after", "no call, before", "no call, after")
    head = ("seed", *accuracies, f"reward, first {LAST} steps", f"reward, last {LAST} steps")
    return table(head, body) if body else ["Not measured yet."]


def pilot_deviation(rows: Rows) -> tuple[float, int]:
    """Standard deviation of the primary figure between seeds, pooled over tuned settings, and their number.

    Only trials whose accuracy is that of sampled responses count. The settings share their seeds.
    """
    by_name: dict[str, list[float]] = {}
    for row in rows:
        sampled = int(row.get("settings", {}).get("evaluate_samples", 0))
        if row["part"] in TUNED and sampled and PRIMARY in row["figures"]:
            by_name.setdefault(row["scheme"], []).append(row["figures"][PRIMARY])
    several = [values for values in by_name.values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in several)
    if not freedom:
        return math.nan, 0
    return math.sqrt(sum(variance(values) * (len(values) - 1) for values in several) / freedom), len(several)


def half_width(deviation: float, seeds: int) -> float:
    """Expected half width of the interval of a mean of `seeds` paired differences.

    Args:
        deviation: of a single trial; trials of a pair are taken as independent, which is the worst case.
    """
    from scipy import stats

    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, seeds - 1)) * math.sqrt(2 / seeds) * deviation


def power(rows: Rows, seeds: Sequence[int] = (5, 8, 12, 16, 24)) -> list[str]:
    """How wide the interval of the primary figure will be, by the pilot."""
    deviation, settings = pilot_deviation(rows)
    if not settings:
        return ["Not measured yet."]
    lines = table(("seeds", "half width, points"), [[str(n), f"{100 * half_width(deviation, n):.1f}"] for n in seeds])
    spread = (
        f"Standard deviation between seeds: {100 * deviation:.1f} points (over {settings} settings, the same seeds)."
    )
    return [spread, "", *lines]


def two_stages(rows: Rows) -> list[str]:
    """How many pairs the primary figure takes, by the deviation of the first ones, and its interval by Stein's rule."""
    from scipy import stats

    found = compared(rows, PRIMARY, parts=("comparison",))
    differences = found.differences[REST].values if found is not None and REST in found.differences else {}
    first = [differences[seed] for seed in range(FIRST) if seed in differences]
    if len(first) < FIRST:
        return ["Not measured yet."]
    deviation, quantile = math.sqrt(variance(first)), float(stats.t.ppf(0.5 + CONFIDENCE / 2, FIRST - 1))
    wanted = math.ceil((quantile * deviation / MARGIN) ** 2)
    mean, half = fmean(differences.values()), quantile * deviation / math.sqrt(len(differences))
    shown = [f"{100 * value:+.1f}" for value in (mean, mean - half, mean + half)]
    return [
        f"The differences of the first {FIRST} pairs have a standard deviation of {100 * deviation:.1f} points, which "
        f"asks for {wanted} pairs (at least {FIRST} are trained, at most {MOST}); there are {len(differences)}. {REST} "
        f"minus {BASELINE} by Stein's rule: {shown[0]} points ({shown[1]} to {shown[2]})."
    ]


def smoothed(values: Sequence[float | None]) -> np.ndarray:
    """Means over the last `LAST` steps, from the step on that has so many; nan where none of them was measured."""
    windows = np.lib.stride_tricks.sliding_window_view(np.array(values, float), LAST)
    count = np.isfinite(windows).sum(-1)
    return np.where(count > 0, np.nansum(windows, -1) / np.maximum(count, 1), np.nan)


def speed(rows: Rows, scheme: str = REST) -> dict[str, Any] | None:
    """Steps until the baseline's final reward is reached, over those that the baseline takes.

    The curves are means over the seeds that both have, smoothed; the interval is that of a bootstrap over seeds, which
    is too narrow with few of them. A scheme that does not get there counts as one step more than the whole training.
    """
    curves: dict[str, dict[int, Sequence[float]]] = {BASELINE: {}, scheme: {}}
    for row in rows:
        if row["part"] == "comparison" and row["scheme"] in curves:
            curves[row["scheme"]][row["seed"]] = row["curves"]["reward/total"]
    seeds = sorted(curves[BASELINE].keys() & curves[scheme].keys())
    if len(seeds) < 2:
        return None
    base, other = (np.array([smoothed(curves[name][seed]) for seed in seeds]) for name in (BASELINE, scheme))

    def steps(chosen: np.ndarray) -> tuple[float, float, bool]:
        plain, mine = base[chosen].mean(0), other[chosen].mean(0)
        target = plain[-1]
        return _first(mine, target), _first(plain, target), bool(mine.max() >= target)

    generator = np.random.default_rng(0)
    mine, of, reached = steps(np.arange(len(seeds)))
    drawn = [steps(generator.integers(len(seeds), size=len(seeds))) for _ in range(_DRAWS)]
    low, high = np.quantile([one / other for one, other, _ in drawn], (0.025, 0.975))
    found = {"steps": mine, "of": of, "ratio": mine / of, "low": float(low), "high": float(high), "seeds": len(seeds)}
    return found | {"reached": reached, "not_reached": fmean(not one for *_, one in drawn)}


def _first(curve: np.ndarray, target: float) -> float:
    """The step, in the middle of its window, at which a smoothed curve has reached a target for the first time."""
    reached = np.flatnonzero(curve >= target - 1e-12)
    return (LAST + 1) / 2 + (int(reached[0]) if len(reached) else len(curve))


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """Markdown."""
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]
