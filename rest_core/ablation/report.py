"""An ablation's report: JSON and CSV for programs, one HTML page with its plot for people, a summary for MLflow."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2

from rest_core.ablation.collect import TrialResult
from rest_core.ablation.compare import Comparison, Difference, Summary, compare
from rest_core.ablation.plot import comparison_figure
from rest_core.ablation.settings import AblationConfig
from rest_core.disk import disk_errors, written_aside
from rest_core.evaluation.statistics import Interval
from rest_core.manifest import leaves

JSON_FILE, CSV_FILE, HTML_FILE, PLOT_FILE = "report.json", "trials.csv", "report.html", "comparison.png"


@dataclass(frozen=True)
class AblationReport:
    """What the trials of an ablation have come to."""

    title: str
    settings: AblationConfig
    results: Sequence[TrialResult]

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """By figure, those that were measured, the deciding one first."""
        found = {
            metric: compare(self.results, metric, baseline=self.settings.baseline, confidence=self.settings.confidence)
            for metric in self.settings.shown
        }
        return {metric: comparison for metric, comparison in found.items() if comparison is not None}

    @cached_property
    def metrics(self) -> dict[str, float]:
        """For the tracker: each scheme's mean, and its difference from the baseline with the interval's bounds."""
        values: dict[str, float] = {}
        for metric, comparison in self.comparisons.items():
            values |= {f"ablation/{metric}/{name}": one.mean for name, one in comparison.schemes.items()}
            for name, difference in comparison.differences.items():
                key = f"ablation/{metric}/{name} - {self.settings.baseline}"
                values[key] = difference.mean
                if difference.interval is not None:
                    values |= {f"{key}/low": difference.interval.low, f"{key}/high": difference.interval.high}
        return values

    @cached_property
    def notes(self) -> list[str]:
        """What a reader must know before the figures."""
        seeds = {name: [r.trial.seed for r in self.results if r.trial.name == name] for name in self._names}
        notes = []
        if self.settings.metric not in self.comparisons:
            known = sorted({name for result in self.results for name in result.metrics if "/count/" not in name})
            notes.append(
                f"The deciding figure {self.settings.metric} was not measured; measured were: {', '.join(known)}."
            )
        if self._baseline not in seeds:
            notes.append(f"No trial has the baseline {self._baseline}: there are no differences.")
        if len({tuple(found) for found in seeds.values()}) > 1:
            listed = "; ".join(f"{name}: {', '.join(map(str, found))}" for name, found in seeds.items())
            notes.append(f"The schemes have different seeds ({listed}); differences are over common seeds only.")
        if self.settings.metric in self.comparisons:
            found = self.comparisons[self.settings.metric].schemes
            lacking = [
                r.trial.label
                for r in self.results
                if r.trial.name not in found or r.trial.seed not in found[r.trial.name].values
            ]
            if lacking:
                notes.append(f"Without the deciding figure: {', '.join(lacking)}.")
        idle = [r.trial.label for r in self.results if r.metrics.get("rl/updates") == 0]
        if idle:
            notes.append(
                f"Not one update, for want of a signal: {', '.join(idle)}. What was evaluated is the starting policy."
            )
        fewest = min(map(len, seeds.values()))
        if fewest == 1:
            notes.append("A scheme with one seed has no interval: how much another seed would change is not known.")
        elif fewest < 3:
            notes.append(f"{fewest} seeds give very wide intervals (t with {fewest - 1} degree of freedom): take more.")
        subset = [name for name in ("bfcl", "api_bank") if any(r.metrics.get(f"{name}/subset") for r in self.results)]
        if subset:
            notes.append(f"Measured on a part of the questions only: {', '.join(subset)}.")
        odd = [f"{name} of {r.trial.label} ({value})" for r in self.results for name, value in r.not_finite.items()]
        if odd:
            notes.append(f"No finite number, and left out: {', '.join(odd)}.")
        if "reward/after" in self.comparisons and any(r.reward != self.results[0].reward for r in self.results):
            notes.append("The schemes are measured by other rewards: reward/after does not compare them.")
        skipped = {f"{stage}: {reason}" for result in self.results for stage, reason in result.skipped.items()}
        return notes + [f"Skipped: {line}." for line in sorted(skipped)]

    def write(self, out: Path) -> tuple[Path, ...]:
        """Write report.json, trials.csv, comparison.png and report.html into the folder `out`; returns their paths."""
        _write(out / JSON_FILE, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")
        _write(out / CSV_FILE, self._csv())
        plot = out / PLOT_FILE
        with disk_errors(plot), written_aside(plot) as aside:
            comparison_figure(list(self.comparisons.values()), self.settings).savefig(aside, format="png", dpi=120)
        _write(out / HTML_FILE, self._html(plot.read_bytes()))
        return tuple(out / name for name in (JSON_FILE, CSV_FILE, PLOT_FILE, HTML_FILE))

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        trials = [
            {
                **r.trial.model_dump(mode="json"),
                "metrics": r.metrics,
                "measured_on": r.measured_on,
                "skipped": r.skipped,
            }
            for r in self.results
        ]
        return {
            "title": self.title,
            "settings": self.settings.model_dump(mode="json"),
            "notes": self.notes,
            "comparisons": {metric: asdict(comparison) for metric, comparison in self.comparisons.items()},
            "trials": trials,
        }

    def markdown(self) -> str:
        """A summary in Markdown: notes, and a table of the deciding figure, else of all."""
        decided = self.settings.metric in self.comparisons
        shown = [self.comparisons[self.settings.metric]] if decided else list(self.comparisons.values())
        lines = [f"**{self.title}**", *(f"- {note}" for note in self.notes)]
        for comparison in shown:
            header = ["scheme", "seeds", f"{comparison.metric}: mean", self._interval_header, f"minus {self._baseline}"]
            lines += ["", f"| {' | '.join([*header, self._interval_header])} |", "|---|---:|---:|---:|---:|---:|"]
            lines += [f"| {' | '.join(row)} |" for row in self._rows(comparison)]
        return "\n".join(lines) + "\n"

    @property
    def _names(self) -> list[str]:
        return list(dict.fromkeys(result.trial.name for result in self.results))

    @property
    def _baseline(self) -> str:
        return self.settings.baseline

    @property
    def _interval_header(self) -> str:
        return f"{self.settings.confidence:.0%} interval"

    def _rows(self, comparison: Comparison) -> list[list[str]]:
        """A row a scheme."""
        form = Format(comparison)
        return [
            [name, *form.cells(comparison.schemes[name], comparison.differences.get(name))]
            for name in comparison.ordered(self._baseline)
        ]

    def _csv(self) -> str:
        """A row a trial, a column a figure."""
        columns = sorted({name for result in self.results for name in result.metrics})
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["scheme", "seed", *columns])
        for result in self.results:
            writer.writerow([result.trial.name, result.trial.seed, *(result.metrics.get(name, "") for name in columns)])
        return text.getvalue()

    def _html(self, plot: bytes) -> str:
        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        template = environment.from_string(files("rest_core.ablation").joinpath("report.html.jinja").read_text("utf-8"))
        tables = [
            {
                "metric": comparison.metric,
                "decides": comparison.metric == self.settings.metric,
                "rows": [
                    [
                        *row,
                        _p(comparison.differences.get(row[0])),
                        _values(comparison.schemes[row[0]], Format(comparison)),
                    ]
                    for row in self._rows(comparison)
                ],
            }
            for comparison in self.comparisons.values()
        ]
        schemes = {
            result.trial.name: [
                *result.trial.weights.model_dump(mode="json").items(),
                *((f"rl.{name}", value) for name, value in leaves(result.trial.rl)),
            ]
            for result in self.results
        }
        measured = {f"{stage}: {what}" for result in self.results for stage, what in result.measured_on.items()}
        return template.render(
            title=self.title,
            notes=self.notes,
            baseline=self._baseline,
            interval=self._interval_header,
            tables=tables,
            schemes={name: ", ".join(f"{k} {v}" for k, v in values) for name, values in schemes.items()},
            measured=sorted(measured),
            plot=base64.b64encode(plot).decode(),
        )


class Format:
    """Figures of one metric as people read them: shares in percent, their differences in percentage points."""

    def __init__(self, comparison: Comparison) -> None:
        self._share = comparison.is_share

    def value(self, value: float) -> str:
        return f"{value:.1%}" if self._share else f"{value:.3f}"

    def difference(self, value: float) -> str:
        return f"{100 * value:+.1f} pp" if self._share else f"{value:+.3f}"

    def bounds(self, interval: Interval | None, form: Callable[[float], str]) -> str:
        return "–" if interval is None else f"{form(interval.low)} to {form(interval.high)}"

    def cells(self, one: Summary, difference: Difference | None) -> list[str]:
        """Number of seeds, mean, its interval, difference from the baseline, its interval."""
        cells = [str(len(one.values)), self.value(one.mean), self.bounds(one.interval, self.value)]
        if difference is None:
            return [*cells, "", ""]
        return [*cells, self.difference(difference.mean), self.bounds(difference.interval, self.difference)]


def _p(difference: Difference | None) -> str:
    if difference is None or difference.p_holm is None:
        return ""
    return "< 0.001" if difference.p_holm < 0.001 else f"{difference.p_holm:.3f}"


def _values(summary: Summary, form: Format) -> str:
    return ", ".join(f"{seed}: {form.value(value)}" for seed, value in sorted(summary.values.items()))


def _write(path: Path, text: str) -> None:
    with disk_errors(path), written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
