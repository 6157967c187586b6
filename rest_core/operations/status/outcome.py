"""The report on a run that has ended, in Markdown: KFP's and MLflow's pages show it, and the log."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rest_core.credentials import redact
from rest_core.errors import UserError, described
from rest_core.operations.status.final import Verdict
from rest_core.operations.status.mlflow_runs import StageEnd

log = logging.getLogger(__name__)

_MARKS = {"FINISHED": "✅", "FAILED": "❌", "KILLED": "❌"}
_VERDICT_MARKS: dict[Verdict, str] = {"succeeded": "✅", "failed": "❌", "stopped": "⏹", "unknown": "❔"}
_LONGEST_LINE = 2000  # of a log


@dataclass(frozen=True)
class FailedStage:
    """A stage that did not end well."""

    stage: str
    why: str  # one line
    log: tuple[str, ...] = ()
    reproduce: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    verdict: Verdict
    pipeline_run: str
    failures: tuple[FailedStage, ...]  # in the order in which they happened
    message: str | None  # KFP's own, or what to do where no stage is known to have failed
    stages: tuple[StageEnd, ...]
    links: tuple[tuple[str, str], ...]  # (name, address)

    @property
    def succeeded(self) -> bool:
        return self.verdict == "succeeded"

    @property
    def line(self) -> str:
        """The outcome in one line."""
        if self.succeeded or not self.failures:
            return self.verdict + (f": {self.message}" if self.message and not self.succeeded else "")
        return "; ".join(f"{one.stage} {self.verdict}: {one.why}" for one in self.failures)


@contextmanager
def noted(notes: list[str], what: str) -> Iterator[None]:
    """Around a part of the report: if it fails, the report is shorter and says so in a line of `notes`."""
    try:
        yield
    except UserError as problem:
        notes.append(f"{what}: {problem}")
    except Exception as defect:  # every client library has failures of its own
        log.exception("%s", what)
        notes.append(f"{what}: {described(defect)}")


def mark(verdict: Verdict) -> str:
    """A sign that stands for how a run ended."""
    return _VERDICT_MARKS[verdict]


def markdown(outcome: Outcome, notes: Sequence[str]) -> str:
    """The whole report; `notes` say what could not be looked up, and what was removed."""
    where = " and ".join(one.stage for one in outcome.failures)
    heading = f"{mark(outcome.verdict)} {outcome.verdict}{f' in {where}' if where else ''}"
    blocks = [f"# {heading}", f"Run: {outcome.pipeline_run}"]
    if outcome.message and not outcome.succeeded:
        if outcome.failures:  # which say more
            notes = [f"KFP says: {outcome.message}", *notes]
        else:
            blocks.append(outcome.message)
    for failure in outcome.failures:
        blocks.append(f"## {failure.stage}\n\n{failure.why}")
        if failure.log:
            blocks.append("The last lines of its log:\n\n" + _code(failure.log))
        if failure.reproduce:
            blocks.append("To run it again on your own machine:\n\n" + _code(failure.reproduce, "sh"))
    if outcome.stages:
        blocks.append(_table(outcome.stages))
    if outcome.links:
        blocks.append("\n".join(f"- {name}: {address}" for name, address in outcome.links))
    if notes:
        blocks.append("\n".join(f"- {redact(note)}" for note in notes))
    return "\n\n".join(blocks) + "\n"


def _table(stages: Sequence[StageEnd]) -> str:
    lines = ["| | stage | ended as | time | MLflow |", "|---|---|---|---|---|"]
    for one in stages:
        ended = f"skipped: {one.skipped}" if one.skipped else "killed" if one.is_open else one.status
        # A link to the run's page; for a local store, how to get there.
        page = f"[{one.link.partition('/runs/')[2][:8]}]({one.link})" if one.link.startswith("http") else one.link
        lines.append(f"| {_MARKS.get(one.status, '❌')} | {one.name} | {ended} | {one.seconds:.0f} s | {page} |")
    return "\n".join(lines)


def _code(lines: Sequence[str], language: str = "") -> str:
    """A code block, which no line of it ends."""
    ticks = max((len(found) for line in lines for found in re.findall("`+", line)), default=0)
    fence = "`" * max(3, ticks + 1)
    cut = [line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}…" for line in lines]
    return "\n".join([f"{fence}{language}", *cut, fence])
