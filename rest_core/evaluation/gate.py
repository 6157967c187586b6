"""The gate before `champion`: what a policy's evaluation must show, by itself and against others on the same items.

Differences are those of `rest compare`. The deciding figure's must be clear, which a tie never is; of the categories
only clear losses count, because among ten categories of few items one is always lower by chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from rest_core.config import GateConfig
from rest_core.errors import UserError, nearest, one_line
from rest_core.evaluation.comparison import compare
from rest_core.evaluation.paired import Difference, Evaluation, Pair, read
from rest_core.evaluation.statistics import Interval


@dataclass(frozen=True)
class Rival:
    """A policy that a candidate must not be worse than."""

    name: str  # for people: "rest-tool-use version 3"
    evaluation: Path | str  # the output directory of its evaluation, or why there is none


@dataclass(frozen=True)
class Condition:
    """What the gate wants to see, and what it saw."""

    name: str
    wanted: str
    found: str
    met: bool


@dataclass(frozen=True)
class Verdict:
    """All conditions, met or not."""

    conditions: tuple[Condition, ...]

    @property
    def passed(self) -> bool:
        return all(one.met for one in self.conditions)

    @property
    def reason(self) -> str:
        """What is not met, in one line; empty where the gate is passed."""
        return "; ".join(
            f"{one.name}: {one.found}" + (f" (wanted: {one.wanted})" if one.wanted else "")
            for one in self.conditions
            if not one.met
        )

    def to_json(self) -> list[dict[str, Any]]:
        return [asdict(one) for one in self.conditions]

    def table(self) -> Table:
        """For a terminal: a row a condition."""
        return table(self.to_json())


def table(conditions: Sequence[Mapping[str, Any]]) -> Table:
    """The conditions of `Verdict.to_json` for a terminal."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "gate", "wanted", "found"):
        shown.add_column(column, overflow="fold")
    for one in conditions:
        mark = Text("✓", "green") if one["met"] else Text("✗", "red")
        shown.add_row(mark, *(Text(one_line(one[column])) for column in ("name", "wanted", "found")))
    return shown


def judge(gate: GateConfig, candidate: Path, *, champion: Rival | None, base: Rival) -> Verdict:
    """Whether a policy may become champion.

    Args:
        gate: the conditions.
        candidate: the output directory of its evaluation.
        champion: None where there is none yet: the candidate must then beat its base model.
        base: the model that it was trained from.

    Raises:
        UserError: the directory holds no evaluation on the benchmark of `gate.metric`, or it lacks that figure.
    """
    evaluation = Evaluation("candidate", candidate, *read(candidate))
    figure = _figure(gate.metric, evaluation)
    return Verdict(
        (
            *_alone(gate, evaluation, figure),
            *(_against(gate, candidate, base, figure) if gate.better_than_base or champion is None else ()),
            *(_against(gate, candidate, champion, figure, champion=True) if champion is not None else ()),
        )
    )


def _figure(metric: str, evaluation: Evaluation) -> str:
    """The deciding figure, without the name of its benchmark."""
    known = [f"{evaluation.measured.benchmark}/{name}" for name in {**evaluation.averages, **evaluation.verdicts}]
    if metric not in known:
        raise UserError(
            f"gate.metric={metric}: {evaluation.directory} does not have it{nearest(metric, known)} "
            f"(it has: {', '.join(known)})"
        )
    return metric.partition("/")[2]


def _alone(gate: GateConfig, evaluation: Evaluation, figure: str) -> Iterator[Condition]:
    scores = evaluation.averages.get(figure, {figure: 1.0})
    questions = sum(len(evaluation.verdicts[score]) for score in scores)
    yield Condition(
        f"questions behind {figure}",
        f"at least {gate.min_questions}",
        str(questions),
        questions >= gate.min_questions,
    )
    well_formed = [row.get("well_formed") is True for row in evaluation.rows.values()]
    share = sum(well_formed) / len(well_formed)
    yield Condition(
        "well-formed responses", f"at least {gate.min_well_formed:.0%}", f"{share:.1%}", share >= gate.min_well_formed
    )


def _against(
    gate: GateConfig, candidate: Path, rival: Rival, figure: str, *, champion: bool = False
) -> Iterator[Condition]:
    """The conditions on the differences to the champion, or to the base model."""
    margin = gate.margin if champion else 0.0
    wanted = "a lower bound above 0" if margin == 0 else f"a lower bound of at least {_points(-margin)} points"
    name = f"{figure} against {rival.name}"
    if isinstance(rival.evaluation, str):
        yield Condition(name, wanted, rival.evaluation, False)
        return
    try:
        (pair,) = compare([rival.evaluation, candidate], [rival.name, "candidate"]).pairs
    except UserError as problem:
        yield Condition(name, wanted, str(problem), False)
        return
    if (difference := pair.differences.get(figure)) is None:
        yield Condition(name, wanted, f"the two evaluations do not have {figure} of the same categories", False)
        return
    low = difference.interval.low
    yield Condition(name, wanted, _shown(difference), low > 0 if margin == 0 else low >= -margin)
    if champion:
        yield _categories(gate, pair)


def _categories(gate: GateConfig, pair: Pair) -> Condition:
    lost = {
        name: difference
        for name, difference in pair.categories.items()
        if difference.clear and difference.value < -gate.max_category_loss
    }
    most = f" by more than {_points(gate.max_category_loss)[1:]} points" if gate.max_category_loss else ""
    found = ", ".join(f"{name} {_shown(difference)}" for name, difference in lost.items())
    return Condition(f"categories against {pair.before.name}", f"none clearly worse{most}", found or "none", not lost)


def _shown(difference: Difference) -> str:
    interval: Interval = difference.interval
    return f"{_points(difference.value)} points ({_points(interval.low)} to {_points(interval.high)})"


def _points(fraction: float) -> str:
    text = f"{100 * fraction:+.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text
