"""Evaluations of several policies on the same items, compared item by item.

Each is compared with the first and with the one before it, so that base → warm-up → trained shows both the whole way
and its last part. The items are paired: the same one, answered by both. Categories are tested by McNemar's exact test,
adjusted by Holm for their number, with Newcombe's interval of the difference; averages have a paired bootstrap,
stratified by category.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from rest_core.errors import UserError
from rest_core.evaluation import comparison_report
from rest_core.evaluation.paired import Compared, Evaluation, Summary, pair, read

_NAMED = 3  # ids in a message


class Comparison(Compared):
    """Evaluations that compare: made by `compare`."""

    def write(self, out: Path) -> tuple[Path, ...]:
        """Write comparison.json, comparison.md and comparison.html to the directory `out`; returns their paths."""
        return comparison_report.write(self, out)

    def table(self) -> RenderableType:
        """For a terminal: a table a pair."""
        return comparison_report.tables(self)

    def metrics(self) -> dict[str, float]:
        """For the tracker: each average's difference with its bounds, and the headline's number of gains and losses."""
        values: dict[str, float] = {}
        for one in self.pairs:
            for name, difference in one.averages.items():
                key = f"comparison/{self.evaluations[0].measured.benchmark}/{name}/{one.label}"
                values |= {
                    f"{key}/difference": difference.value,
                    f"{key}/low": difference.interval.low,
                    f"{key}/high": difference.interval.high,
                }
                if name in self.headline:
                    values |= {f"{key}/gained": len(difference.gained), f"{key}/lost": len(difference.lost)}
        return values


def compare(reports: Sequence[Path], names: Sequence[str] | None = None) -> Comparison:
    """Compare evaluations of the same items.

    Args:
        reports: output directories of an evaluation stage, at least two; the first is the baseline.
        names: of the evaluations; by default those of their models.

    Raises:
        UserError: a directory holds no evaluation, or they were not measured on the same items with the same template,
            limits and checker; the message names the difference.
    """
    if len(reports) < 2:
        raise UserError(f"{len(reports)} evaluation to compare: give at least two")
    if names is not None and (len(names) != len(reports) or len(set(names)) < len(names)):
        raise UserError(f"names {', '.join(names)}: give {len(reports)} different ones, as many as evaluations")
    contents = [read(directory) for directory in reports]
    named = names or _names(reports, [summary for summary, _ in contents])
    found = [Evaluation(*one) for one in zip(named, reports, *zip(*contents, strict=True), strict=True)]
    for other in found[1:]:
        _require_comparable(found[0], other)
    places = [(before, after) for after in range(1, len(found)) for before in sorted({0, after - 1})]
    return Comparison(tuple(found), tuple(pair(found[before], found[after]) for before, after in places))


def _names(directories: Sequence[Path], summaries: Sequence[Summary]) -> list[str]:
    """The models' names; the directories too where a name stands twice."""
    models = [summary.model for summary in summaries]
    counts = Counter(models)
    names = [
        model if counts[model] == 1 else f"{model} ({directory})"
        for model, directory in zip(models, directories, strict=True)
    ]
    return [f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def _require_comparable(first: Evaluation, other: Evaluation) -> None:
    """Raise `UserError` with the first difference in how two evaluations were made."""
    for what, ours, theirs in _differences(first, other):
        if ours != theirs:
            raise UserError(
                f"{first.directory} and {other.directory} do not compare: {what}: {ours} and {theirs}; evaluate both "
                "in the same way"
            )


def _differences(first: Evaluation, other: Evaluation) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = first.measured, other.measured
    yield "benchmark", ours.benchmark, theirs.benchmark
    yield "checker", ours.checker, theirs.checker
    yield "rules", ", ".join(ours.rules), ", ".join(theirs.rules)
    yield "condition", ours.condition, theirs.condition
    yield "prompt template (SHA-256)", ours.template[:12], theirs.template[:12]
    for name in {**ours.limits, **theirs.limits}:
        yield f"limit {name}", ours.limits.get(name), theirs.limits.get(name)
    only_ours, only_theirs = (_named(a.rows.keys() - b.rows.keys()) for a, b in ((first, other), (other, first)))
    yield "items in one alone", only_ours, only_theirs
    yield "questions or tools of the same ids (SHA-256)", ours.items[:12], theirs.items[:12]
    categories = [{id_: row["category"] for id_, row in one.rows.items()} for one in (first, other)]
    changed = {id_ for id_, category in categories[0].items() if categories[1][id_] != category}
    yield "items of other categories", _named(changed), "none"
    counts = [{id_: len(row.get("samples", ())) for id_, row in one.rows.items()} for one in (first, other)]
    yield (
        "items with other numbers of samples",
        _named({id_ for id_ in counts[0] if counts[0][id_] != counts[1][id_]}),
        "none",
    )


def _named(ids: set[str]) -> str:
    shown = ", ".join(sorted(ids)[:_NAMED])
    return f"{len(ids)} ({shown}{', …' if len(ids) > _NAMED else ''})" if ids else "none"
