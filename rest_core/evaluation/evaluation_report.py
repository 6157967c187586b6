"""The report of an evaluation: scores, metrics for the tracker, a row per question, and files for people to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from rest_core.disk import disk_errors, written_aside
from rest_core.evaluation.statistics import Accuracy


@dataclass(frozen=True)
class EvaluationReport:
    """The result of an evaluation; `write` makes the files that people read."""

    title: str
    model: str
    scores: Mapping[str, Accuracy]  # by category, in the order in which they are shown
    averages: Mapping[str, float]  # by name, as fractions
    metrics: dict[str, float]  # for the tracker
    rows: list[dict[str, Any]]  # one a question: id, category, verdict, response text, token counts
    subset: str | None = None  # which part of the benchmark was put; None where it was all of it
    notes: tuple[str, ...] = ()  # how the figures came about
    template: str | None = None  # the prompt's template, where it is ours: figures depend on it

    def write(self, out: Path) -> None:
        """Write rows.jsonl, report.json, report.md and accuracy.png into the directory `out`."""
        write_jsonl(out / "rows.jsonl", self.rows)
        write_text(out / "report.json", json.dumps(self._summary(), indent=2) + "\n")
        write_text(out / "report.md", self._markdown())
        write_figure(out / "accuracy.png", self._plot())

    def _summary(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "model": self.model,
            "averages": dict(self.averages),
            "scores": {
                name: {
                    "correct": score.correct,
                    "total": score.total,
                    "accuracy": score.value,
                    "interval_95": [score.interval.low, score.interval.high],
                }
                for name, score in self.scores.items()
            },
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
            lines.append(f"| {name} | {score.correct} | {score.total} | {score.value:.1%} | {interval} |")
        if self.averages:
            lines += ["", "| average | accuracy |", "|---|---:|"]
            lines += [f"| {name} | {value:.1%} |" for name, value in self.averages.items()]
        if self.template is not None:
            lines += ["", "The prompt's template:", "", "~~~text", self.template, "~~~"]
        return "\n".join(lines) + "\n"

    def _plot(self) -> Figure:
        """A bar a category with its 95 % interval, the averages below them."""
        scores = list(self.scores.values())
        labels = [f"{name}  (n={score.total})" for name, score in self.scores.items()] + list(self.averages)
        values = [score.value for score in scores] + list(self.averages.values())
        ends = [score.interval.high for score in scores] + list(self.averages.values())
        figure = Figure(figsize=(8, 1.4 + 0.3 * len(labels)), layout="constrained")
        axes = figure.subplots()
        colours = ["#4c78a8"] * len(scores) + ["#f58518"] * len(self.averages)
        axes.barh(range(len(labels)), [100 * value for value in values], color=colours, height=0.7)
        axes.errorbar(
            [100 * score.value for score in scores],
            range(len(scores)),
            xerr=[
                [100 * max(0.0, score.value - score.interval.low) for score in scores],
                [100 * max(0.0, score.interval.high - score.value) for score in scores],
            ],
            fmt="none",
            ecolor="#333333",
            elinewidth=1,
            capsize=3,
        )
        for position, (value, end) in enumerate(zip(values, ends, strict=True)):
            axes.text(100 * end + 1.5, position, f"{value:.1%}", va="center", fontsize=8)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 110)
        axes.set_xticks(range(0, 101, 20))
        axes.set_xlabel("accuracy in percent; lines are 95 % intervals, averages are orange")
        subset = "" if self.subset is None else f"\nSUBSET: {self.subset}"
        figure.suptitle(f"{self.title}: {self.model}{subset}", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, ASCII only: model output may hold characters that UTF-8 cannot encode."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    with disk_errors(path), written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_figure(path: Path, figure: Figure) -> None:
    with disk_errors(path), written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
