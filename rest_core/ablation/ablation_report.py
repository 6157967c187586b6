"""An ablation's report: JSON and CSV for programs, one HTML page with its plot for people, a summary for MLflow."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rest_core.ablation.collect import TrialResult
from rest_core.ablation.compare import Comparison, compare
from rest_core.ablation.plot import comparison_figure
from rest_core.ablation.settings import AblationConfig
from rest_core.evaluation.evaluation_report import write_figure, write_text
from rest_core.manifest import leaves
from rest_core.pages import render

JSON_FILE, CSV_FILE, HTML_FILE, PLOT_FILE = "report.json", "trials.csv", "report.html", "comparison.png"


@dataclass(frozen=True)
class AblationReport:
    """The trials of an ablation, compared; `write` makes the files that people read."""

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
        """The limits of the figures, to be read before them."""
        skipped = {f"{stage}: {reason}" for result in self.results for stage, reason in result.skipped.items()}
        return [
            *self._notes_on_metrics(),
            *self._notes_on_seeds(),
            *self._notes_on_trials(),
            *(f"Skipped: {line}." for line in sorted(skipped)),
        ]

    def _notes_on_metrics(self) -> Iterator[str]:
        metric, results = self.settings.metric, self.results
        if metric not in self.comparisons:
            known = sorted({name for result in results for name in result.metrics if "/count/" not in name})
            yield f"The deciding figure {metric} was not measured; measured were: {', '.join(known)}."
        elif lacking := [r.trial.label for r in results if metric not in r.metrics]:
            yield f"Without the deciding figure: {', '.join(lacking)}."
        if "reward/after" in self.comparisons and any(r.reward != results[0].reward for r in results):
            yield "The schemes are measured by other rewards: reward/after does not compare them."
        if subset := [name for name in ("bfcl", "api_bank") if any(r.metrics.get(f"{name}/subset") for r in results)]:
            yield f"Measured on a part of the questions only: {', '.join(subset)}."

    def _notes_on_seeds(self) -> Iterator[str]:
        seeds: dict[str, list[int]] = {}
        for result in self.results:
            seeds.setdefault(result.trial.name, []).append(result.trial.seed)
        if self._baseline not in seeds:
            yield f"No trial has the baseline {self._baseline}: there are no differences."
        if len({tuple(found) for found in seeds.values()}) > 1:
            listed = "; ".join(f"{name}: {', '.join(map(str, found))}" for name, found in seeds.items())
            yield f"The schemes have different seeds ({listed}); differences are over common seeds only."
        fewest = min(map(len, seeds.values()))
        if fewest == 1:
            yield "A scheme with one seed has no interval: how much another seed would change is not known."
        elif fewest < 3:
            yield f"{fewest} seeds give very wide intervals (t with {fewest - 1} degree of freedom): take more."

    def _notes_on_trials(self) -> Iterator[str]:
        if idle := [r.trial.label for r in self.results if r.metrics.get("rl/updates") == 0]:
            yield f"Not one update, for want of a signal: {', '.join(idle)}. The starting policy was evaluated."
        if odd := [
            f"{name} of {r.trial.label} ({value})" for r in self.results for name, value in r.not_finite.items()
        ]:
            yield f"No finite number, and left out: {', '.join(odd)}."

    def write(self, out: Path) -> tuple[Path, ...]:
        """Write report.json, trials.csv, comparison.png and report.html to the directory `out`; returns their paths."""
        write_text(out / JSON_FILE, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")
        write_text(out / CSV_FILE, self._csv())
        write_figure(out / PLOT_FILE, comparison_figure(list(self.comparisons.values()), self.settings))
        write_text(out / HTML_FILE, self._html((out / PLOT_FILE).read_bytes()))
        return tuple(out / name for name in (JSON_FILE, CSV_FILE, PLOT_FILE, HTML_FILE))

    def to_json(self) -> dict[str, Any]:
        """The report as plain JSON types."""
        trials = [
            r.trial.model_dump(mode="json") | {"metrics": r.metrics, "measured_on": r.measured_on, "skipped": r.skipped}
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
            lines += [f"| {' | '.join(comparison.row(name))} |" for name in comparison.ordered(self._baseline)]
        return "\n".join(lines) + "\n"

    @property
    def _baseline(self) -> str:
        return self.settings.baseline

    @property
    def _interval_header(self) -> str:
        return f"{self.settings.confidence:.0%} interval"

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
        schemes = {}
        for trial in (result.trial for result in self.results):
            settings = {**trial.weights.model_dump(mode="json"), **{f"rl.{name}": v for name, v in leaves(trial.rl)}}
            schemes[trial.name] = ", ".join(f"{name} {value}" for name, value in settings.items())
        measured = {f"{stage}: {on}" for result in self.results for stage, on in result.measured_on.items()}
        return render(
            "rest_core.ablation",
            "report.html.jinja",
            title=self.title,
            notes=self.notes,
            baseline=self._baseline,
            interval=self._interval_header,
            comparisons=self.comparisons.values(),
            decides=self.settings.metric,
            schemes=schemes,
            measured=sorted(measured),
            plot=base64.b64encode(plot).decode(),
        )
