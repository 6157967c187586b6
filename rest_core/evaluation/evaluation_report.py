"""The report of an evaluation: figures, metrics for the tracker, a row per question, and files for people to read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_core.disk import disk_errors, written_aside
from rest_core.errors import one_line
from rest_core.evaluation.benchmark import Figures, Row
from rest_core.evaluation.measurement import Measurement
from rest_core.evaluation.statistics import Accuracy, Average, Estimate
from rest_core.evaluation.taxonomy import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE, ROWS_FILE = "report.json", "rows.jsonl"
_LONGEST = 400  # characters of a response in report.md


@dataclass(frozen=True)
class EvaluationReport:
    """The result of an evaluation; `write` makes the files that people read."""

    title: str
    model: str
    figures: Figures
    metrics: dict[str, float]  # for the tracker
    rows: list[Row]  # one a question: `evaluate._row`
    measured: Measurement
    subset: str | None = None  # which part of the benchmark was evaluated; None if all of it
    notes: tuple[str, ...] = ()  # how the figures came about
    template: str | None = None  # the prompt's template, where it is ours: figures depend on it

    @property
    def errors(self) -> dict[str, dict[str, list[str]]]:
        """Ids of the wrong answers, by category and kind of error."""
        return errors_of(self.rows)

    def write(self, out: Path) -> None:
        """Write rows.jsonl, report.json, report.md and accuracy.png into the directory `out`."""
        write_jsonl(out / ROWS_FILE, self.rows)
        write_text(out / REPORT_FILE, json.dumps(self._summary(), indent=2) + "\n")
        write_text(out / "report.md", "\n".join(self._markdown()) + "\n")
        from rest_core.evaluation.plot import accuracy_figure  # matplotlib takes a second

        title = f"{self.title}: {one_line(self.model)}"
        write_figure(out / "accuracy.png", accuracy_figure(title, self.figures, self.subset))

    def _summary(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "model": self.model,
            "headline": {name: _numbers(figure) for name, figure in self.figures.first.items()},
            "averages": {
                name: _numbers(one) | ({"weights": dict(one.weights)} if isinstance(one, Average) else {})
                for name, one in self.figures.averages.items()
            },
            "scores": {
                name: {"correct": score.correct, **_numbers(score)} for name, score in self.figures.scores.items()
            },
            "errors": {
                category: {kind: {"count": len(ids), "example": ids[0]} for kind, ids in kinds.items()}
                for category, kinds in self.errors.items()
            },
            "metrics": self.metrics,
            "measured": self.measured.model_dump(mode="json"),
            "subset": self.subset,
            "notes": list(self.notes),
            "template": self.template,
        }

    def _markdown(self) -> Iterator[str]:
        yield from (f"# {self.title}: {self.model}", "")
        if self.subset is not None:
            yield f"- SUBSET: {self.subset}"
        yield from (f"- {note}" for note in self.notes)
        if self.figures.first:
            yield from ("", "Read these together, never their mean:", "")
            yield from _figures_table("figure", self.figures.first)
        yield from ("", "## Categories", "")
        yield from _figures_table("category", self.figures.scores)
        if others := {name: one for name, one in self.figures.averages.items() if name not in self.figures.first}:
            yield from ("", "## Averages", "")
            yield from _figures_table("average", others)
        yield from self._wrong_answers()
        if self.template is not None:
            yield from ("", "## The prompt's template", "", "~~~text", self.template, "~~~")

    def _wrong_answers(self) -> Iterator[str]:
        """A table of kinds of error by category, and an example of each kind."""
        errors = {category: kinds for category, kinds in self.errors.items() if kinds}
        total: Counter[str] = Counter(dict.fromkeys(Kind, 0))
        for kinds in errors.values():
            total.update({kind: len(ids) for kind, ids in kinds.items()})
        shown = [kind for kind, count in total.items() if count]
        if not shown:
            return
        yield from ("", "## Why answers are wrong", "", f"| category | {' | '.join(shown)} |")
        yield "|---|" + "---:|" * len(shown)
        for category, kinds in errors.items():
            yield f"| {category} | {' | '.join(str(len(kinds.get(kind, ())) or '') for kind in shown)} |"
        if len(errors) > 1:
            yield f"| all | {' | '.join(str(total[kind]) for kind in shown)} |"
        yield from ("", "The first of each kind; rows.jsonl has every answer, report.json an example a category.")
        for kind in shown:
            yield from ("", f"**{kind}**", "", *_example(next(row for row in self.rows if row["kind"] == kind)))


def errors_of(rows: Iterable[Row]) -> dict[str, dict[str, list[str]]]:
    """Ids of wrong answers, by category and kind of error; a category without any is there, too."""
    found: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        kinds = found.setdefault(row["category"], {})
        if row["kind"] is not None:
            kinds.setdefault(row["kind"], []).append(row["id"])
    return found


def _numbers(figure: Estimate) -> dict[str, Any]:
    interval = [figure.interval.low, figure.interval.high]
    return {"accuracy": figure.value, "interval_95": interval, "total": figure.total}


def _figures_table(what: str, figures: Mapping[str, Estimate]) -> Iterator[str]:
    yield f"| {what} | accuracy | 95 % interval | right | of |"
    yield "|---|---:|---:|---:|---:|"
    for name, one in figures.items():
        interval = f"{one.interval.low:.1%} – {one.interval.high:.1%}"
        right = one.correct if isinstance(one, Accuracy) else ""
        yield f"| {name} | {one.value:.1%} | {interval} | {right} | {one.total} |"


def _example(row: Row) -> Sequence[str]:
    """An answer as a list in Markdown; model output is code, on one line."""
    asked = row["question"][-1]["content"] if row["question"] else ""
    lines = [f"- `{row['id']}`: {code(asked)}"]
    if row["expected"] is not None:
        lines.append(
            f"- expected: {code(json.dumps(row['expected'], ensure_ascii=False)) if row['expected'] else 'no call'}"
        )
    lines.append(f"- response: {code(row['response']) if row['response'] else 'none'}")
    if reason := row["skipped"] or row["error"]:
        lines.append(f"- error: {code(reason)}")
    return lines


def code(text: str, *, longest: int = _LONGEST) -> str:
    """Somebody else's text as code of Markdown, on one line."""
    line = one_line(text, longest=longest)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}"


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One JSON object a line, ASCII only: model output may hold characters that UTF-8 cannot encode."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    with disk_errors(path), written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_figure(path: Path, figure: Figure) -> None:
    with disk_errors(path), written_aside(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
