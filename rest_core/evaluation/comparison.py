"""Evaluations of several policies on the same items, compared item by item.

Each is compared with the first and with the one before it, so that base → warm-up → trained shows both the whole way
and its last part. The items are paired: the same one, answered by both. Categories are tested by McNemar's exact test,
adjusted by Holm for their number, with Newcombe's interval of the difference; averages have a paired bootstrap,
stratified by category.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rest_core.config import validate
from rest_core.errors import UserError
from rest_core.evaluation.benchmark import Row
from rest_core.evaluation.evaluation_report import REPORT_FILE, ROWS_FILE
from rest_core.evaluation.measurement import Measurement
from rest_core.evaluation.statistics import Interval, holm, mcnemar, paired_interval, stratified_interval

if TYPE_CHECKING:
    from rich.console import RenderableType

SIGNIFICANT = 0.05
_NAMED = 3  # ids in a message


class _Average(BaseModel):
    weights: dict[str, float] = {}  # none of a mean that is no average of scores


class Summary(BaseModel):
    """What a comparison reads of report.json."""

    title: str
    model: str
    subset: str | None
    headline: dict[str, Any]
    averages: dict[str, _Average]
    measured: Measurement


@dataclass(frozen=True)
class Evaluation:
    """The output directory of an evaluation, as it is compared."""

    name: str  # in the comparison
    directory: Path
    summary: Summary
    rows: Mapping[str, Row]  # by id

    @property
    def measured(self) -> Measurement:
        return self.summary.measured

    @cached_property
    def verdicts(self) -> dict[str, dict[str, bool]]:
        """Whether an answer is right, by score ("simple_python", "level_1_soft") and id."""
        found: dict[str, dict[str, bool]] = {}
        for rule in self.measured.rules:
            for id_, row in self.rows.items():
                name = row["category"] if self.measured.rules == ("valid",) else f"{row['category']}_{rule}"
                found.setdefault(name, {})[id_] = row[rule]
        return found

    @property
    def averages(self) -> dict[str, dict[str, float]]:
        """Weights of the scores, by average, in the order of the report."""
        weights = {name: one.weights for name, one in self.summary.averages.items()}
        return {name: found for name, found in weights.items() if found and found.keys() <= self.verdicts.keys()}

    def value(self, figure: str) -> float:
        """An average or a score, as a fraction."""
        weights = self.averages.get(figure, {figure: 1.0})
        means = {score: sum(self.verdicts[score].values()) / len(self.verdicts[score]) for score in weights}
        return math.fsum(weight * means[score] for score, weight in weights.items())


@dataclass(frozen=True)
class Difference:
    """A figure of one evaluation minus the same of another, over the same items."""

    value: float
    interval: Interval  # 95 %
    total: int  # items
    gained: tuple[str, ...]  # ids of items that are right in the second only
    lost: tuple[str, ...]  # in the first only
    p: float | None = None  # of McNemar's test, two-sided; None of an average
    p_holm: float | None = None  # adjusted for the number of categories

    @property
    def clear(self) -> bool:
        """Whether chance alone hardly explains it."""
        return self.interval.excludes(0) if self.p_holm is None else self.p_holm < SIGNIFICANT


@dataclass(frozen=True)
class Pair:
    """Two evaluations, item by item."""

    before: Evaluation
    after: Evaluation
    averages: Mapping[str, Difference]
    categories: Mapping[str, Difference]

    @property
    def label(self) -> str:
        return f"{self.after.name} - {self.before.name}"

    @property
    def differences(self) -> dict[str, Difference]:
        return {**self.averages, **self.categories}


@dataclass(frozen=True)
class Comparison:
    """Evaluations that compare: made by `compare`."""

    evaluations: tuple[Evaluation, ...]
    pairs: tuple[Pair, ...]

    @property
    def title(self) -> str:
        return f"{self.evaluations[0].summary.title}: {' → '.join(one.name for one in self.evaluations)}"

    @property
    def headline(self) -> tuple[str, ...]:
        """The figures to read first."""
        return tuple(name for name in self.evaluations[0].summary.headline if name in self.pairs[0].differences)

    def write(self, out: Path) -> tuple[Path, ...]:
        """Write comparison.json, comparison.md and comparison.html to the directory `out`; returns their paths."""
        from rest_core.evaluation import comparison_report

        return comparison_report.write(self, out)

    def table(self) -> RenderableType:
        """For a terminal: a table a pair."""
        from rest_core.evaluation import comparison_report

        return comparison_report.tables(self)

    def metrics(self) -> dict[str, float]:
        """For the tracker: each average's difference with its bounds, and the headline's number of gains and losses."""
        values: dict[str, float] = {}
        for pair in self.pairs:
            for name, difference in pair.averages.items():
                key = f"comparison/{self.evaluations[0].measured.benchmark}/{name}/{pair.label}"
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
        names: what to call them; the names of their models where none are given.

    Raises:
        UserError: a directory holds no evaluation, or they were not measured on the same items with the same template,
            limits and checker; the message names the difference.
    """
    if len(reports) < 2:
        raise UserError(f"{len(reports)} evaluation to compare: give at least two")
    if names is not None and (len(names) != len(reports) or len(set(names)) < len(names)):
        raise UserError(f"names {', '.join(names)}: give {len(reports)} different ones, as many as evaluations")
    read = [_read(directory) for directory in reports]
    found = [Evaluation(name, *one) for name, one in zip(names or _names(read), read, strict=True)]
    for other in found[1:]:
        _require_comparable(found[0], other)
    places = [(before, after) for after in range(1, len(found)) for before in sorted({0, after - 1})]
    return Comparison(tuple(found), tuple(_pair(found[before], found[after]) for before, after in places))


def _read(directory: Path) -> tuple[Path, Summary, dict[str, Row]]:
    path = directory / REPORT_FILE
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; give the output directory of an evaluation (`rest eval-bfcl --out`)"
        ) from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: not JSON; evaluate again") from None
    if isinstance(values, dict) and {"model", "scores"} <= values.keys() and "measured" not in values:
        raise UserError(
            f"{path}: an older version made it, which did not record the items, template, limits and checker; evaluate "
            "again to compare"
        )
    summary = validate(Summary, values, where=f"{path} is no report of an evaluation")
    return directory, summary, _rows(directory / ROWS_FILE, summary.measured)


def _rows(path: Path, measured: Measurement) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line)
                if not _is_row(row, measured.rules) or row["id"] in rows:
                    raise UserError(f"{path}: line {number} is no answer to an item of its own; evaluate again")
                rows[row["id"]] = row
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; the answers must lie beside {REPORT_FILE}") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path}: a line is not JSON; evaluate again") from None
    if not rows:
        raise UserError(f"{path}: no answers; evaluate again")
    return rows


def _is_row(row: Any, rules: Sequence[str]) -> bool:
    texts = ("id", "category", "response")
    return (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in texts)
        and all(isinstance(row.get(rule), bool) for rule in rules)
    )


def _names(read: Sequence[tuple[Path, Summary, Any]]) -> list[str]:
    """The models' names; the directories too where a name stands twice."""
    models = [summary.model for _, summary, _ in read]
    counts = Counter(models)
    names = [
        model if counts[model] == 1 else f"{model} ({directory})"
        for model, (directory, *_) in zip(models, read, strict=True)
    ]
    return [f"{name} {number}" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def _require_comparable(first: Evaluation, other: Evaluation) -> None:
    """Raise `UserError` with the first difference in how two evaluations were made."""
    for what, ours, theirs in _differences(first, other):
        if ours != theirs:
            raise UserError(
                f"{first.directory} and {other.directory} do not compare: {what} {ours}, and {theirs}; evaluate both "
                "in the same way"
            )


def _differences(first: Evaluation, other: Evaluation) -> Iterator[tuple[str, Any, Any]]:
    ours, theirs = first.measured, other.measured
    yield "benchmark", ours.benchmark, theirs.benchmark
    yield "checker", ours.checker, theirs.checker
    yield "rules", ", ".join(ours.rules), ", ".join(theirs.rules)
    yield "condition", ours.condition, theirs.condition
    yield "prompt template with the SHA-256", ours.template[:12], theirs.template[:12]
    for name in {**ours.limits, **theirs.limits}:
        yield f"limit {name}", ours.limits.get(name), theirs.limits.get(name)
    only_ours, only_theirs = (_named(a.rows.keys() - b.rows.keys()) for a, b in ((first, other), (other, first)))
    yield "items: of the first alone", only_ours, only_theirs
    yield "items with the same ids, but other questions or tools: SHA-256", ours.items[:12], theirs.items[:12]
    categories = [{id_: row["category"] for id_, row in one.rows.items()} for one in (first, other)]
    changed = {id_ for id_, category in categories[0].items() if categories[1][id_] != category}
    yield "items of other categories:", "none" if not changed else _named(changed), "none"


def _named(ids: set[str]) -> str:
    shown = ", ".join(sorted(ids)[:_NAMED])
    return f"{len(ids)} ({shown}{', …' if len(ids) > _NAMED else ''})" if ids else "none"


def _pair(before: Evaluation, after: Evaluation) -> Pair:
    gained, lost = {}, {}
    for score, verdicts in before.verdicts.items():
        now = after.verdicts[score]
        gained[score] = tuple(id_ for id_, right in verdicts.items() if now[id_] and not right)
        lost[score] = tuple(id_ for id_, right in verdicts.items() if right and not now[id_])
    p_values = {score: mcnemar(len(gained[score]), len(lost[score])) for score in gained}
    adjusted = holm(p_values)
    categories = {}
    for score, verdicts in before.verdicts.items():
        up, down, right = len(gained[score]), len(lost[score]), sum(verdicts.values())
        interval = paired_interval(right - down, up, down, len(verdicts) - right - up)
        value = (up - down) / len(verdicts)
        categories[score] = Difference(
            value, interval, len(verdicts), gained[score], lost[score], p_values[score], adjusted[score]
        )
    weights = {name: one for name, one in before.averages.items() if after.averages.get(name) == one}
    return Pair(before, after, {name: _average(one, categories) for name, one in weights.items()}, categories)


def _average(weights: Mapping[str, float], categories: Mapping[str, Difference]) -> Difference:
    parts = [(weight, categories[score]) for score, weight in weights.items()]
    strata = [
        (weight, {1.0: len(one.gained), -1.0: len(one.lost), 0.0: one.total - len(one.gained) - len(one.lost)})
        for weight, one in parts
    ]
    return Difference(
        math.fsum(weight * one.value for weight, one in parts),
        stratified_interval(strata, low=-1.0),
        sum(one.total for _, one in parts),
        tuple(id_ for _, one in parts for id_ in one.gained),
        tuple(id_ for _, one in parts for id_ in one.lost),
    )
