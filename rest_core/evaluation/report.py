"""What an evaluation hands on: scores, metrics for the tracker, a row per item, and files for people to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rest_core.disk import disk_errors, written_aside
from rest_core.evaluation.statistics import Score


@dataclass(frozen=True)
class Report:
    """The result of an evaluation; `write` makes the files that people read."""

    title: str
    model: str
    scores: Mapping[str, Score]  # by category, in the order in which they are shown
    averages: Mapping[str, float]  # by name, as fractions
    metrics: dict[str, float]  # for the tracker
    rows: list[dict[str, Any]]  # one an item: id, category, verdict, response text, token counts
    subset: str | None = None  # which part of the benchmark was put; None where it was all of it
    notes: tuple[str, ...] = ()  # how the figures came about
    template: str | None = None  # the prompt's template, where it is ours: figures depend on it

    def write(self, out: Path) -> None:
        """Write rows.jsonl, report.json, report.md and accuracy.png into the folder `out`."""
        write_jsonl(out / "rows.jsonl", self.rows)
        _write_text(out / "report.json", json.dumps(self._summary(), indent=2) + "\n")
        _write_text(out / "report.md", self._markdown())
        self._plot(out / "accuracy.png")

    def _summary(self) -> dict[str, Any]:
        scores = {
            name: {
                "correct": score.correct,
                "total": score.total,
                "accuracy": score.accuracy,
                "interval_95": [score.interval.low, score.interval.high],
            }
            for name, score in self.scores.items()
        }
        return {
            "title": self.title,
            "model": self.model,
            "averages": dict(self.averages),
            "scores": scores,
            "metrics": self.metrics,
            "subset": self.subset,
            "notes": list(self.notes),
            "template": self.template,
        }

    def _markdown(self) -> str:
        lines = [f"# {self.title}: {self.model}", ""]
        if self.subset is not None:
            lines.append(f"- SUBSET: {self.subset}")
        lines += [f"- {note}" for note in self.notes]
        lines += ["", "| category | correct | of | accuracy | 95 % interval |", "|---|---:|---:|---:|---:|"]
        for name, score in self.scores.items():
            interval = f"{score.interval.low:.1%} – {score.interval.high:.1%}"
            lines.append(f"| {name} | {score.correct} | {score.total} | {score.accuracy:.1%} | {interval} |")
        if self.averages:
            lines += ["", "| average | accuracy |", "|---|---:|"]
            lines += [f"| {name} | {value:.1%} |" for name, value in self.averages.items()]
        if self.template is not None:
            lines += ["", "The prompt's template:", "", "~~~text", self.template, "~~~"]
        return "\n".join(lines) + "\n"

    def _plot(self, path: Path) -> None:
        """A bar a category with its 95 % interval, the averages below them."""
        bars = [(name, score.accuracy, score.interval, score.total) for name, score in self.scores.items()]
        labels = [f"{name}  (n={total})" for name, _, _, total in bars] + list(self.averages)
        values = [value for _, value, _, _ in bars] + list(self.averages.values())
        positions = list(range(len(labels)))
        figure = Figure(figsize=(8, 1.4 + 0.3 * len(labels)), layout="constrained")
        axes = figure.subplots()
        colours = ["#4c78a8"] * len(bars) + ["#f58518"] * len(self.averages)
        axes.barh(positions, [100 * value for value in values], color=colours, height=0.7)
        axes.errorbar(
            [100 * value for _, value, _, _ in bars],
            positions[: len(bars)],
            xerr=[
                [100 * max(0.0, value - interval.low) for _, value, interval, _ in bars],
                [100 * max(0.0, interval.high - value) for _, value, interval, _ in bars],
            ],
            fmt="none",
            ecolor="#333333",
            elinewidth=1,
            capsize=3,
        )
        ends = [interval.high for _, _, interval, _ in bars] + list(self.averages.values())
        for position, value, end in zip(positions, values, ends, strict=True):
            axes.text(100 * end + 1.5, position, f"{value:.1%}", va="center", fontsize=8)
        axes.set_yticks(positions, labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 110)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("accuracy in percent; lines are 95 % intervals, averages are orange")
        subset = "" if self.subset is None else f"\nSUBSET: {self.subset}"
        figure.suptitle(f"{self.title}: {self.model}{subset}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        with disk_errors(path), written_aside(path) as aside:
            figure.savefig(aside, dpi=120)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, ASCII only: model output may hold characters that UTF-8 cannot encode."""
    _write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    with disk_errors(path), written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")
