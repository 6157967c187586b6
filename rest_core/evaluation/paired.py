"""Two evaluations of the same items, item by item: differences of figures, gains and losses."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rest_core.config import validate
from rest_core.errors import UserError
from rest_core.evaluation.benchmark import Row
from rest_core.evaluation.evaluation_report import REPORT_FILE, ROWS_FILE
from rest_core.evaluation.measurement import Measurement
from rest_core.evaluation.statistics import Interval, holm, mcnemar, paired_interval, stratified_interval

SIGNIFICANT = 0.05


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
        for id_, row in self.rows.items():  # pass@k and pass^k, where an item has several samples
            right = [sample["valid"] for sample in row.get("samples", ())]
            if right:
                found.setdefault(f"{row['category']}_pass_at_{len(right)}", {})[id_] = any(right)
                found.setdefault(f"{row['category']}_pass_hat_{len(right)}", {})[id_] = all(right)
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
class Compared:
    """Evaluations that compare, and their pairs."""

    evaluations: tuple[Evaluation, ...]
    pairs: tuple[Pair, ...]

    @property
    def title(self) -> str:
        return f"{self.evaluations[0].summary.title}: {' → '.join(one.name for one in self.evaluations)}"

    @property
    def headline(self) -> tuple[str, ...]:
        """The figures to read first."""
        return tuple(name for name in self.evaluations[0].summary.headline if name in self.pairs[0].differences)


def read(directory: Path) -> tuple[Summary, dict[str, Row]]:
    """The report and the answers, by id, in the output directory of an evaluation.

    Raises:
        UserError: it is none, or an older version made it.
    """
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
    return summary, _rows(directory / ROWS_FILE, summary.measured)


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
        and _are_samples(row.get("samples", []))
    )


def _are_samples(samples: Any) -> bool:
    return isinstance(samples, list) and all(
        isinstance(sample, dict) and isinstance(sample.get("valid"), bool) for sample in samples
    )


def pair(before: Evaluation, after: Evaluation) -> Pair:
    """The differences between two evaluations of the same items."""
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
