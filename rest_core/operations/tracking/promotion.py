"""Moves of the alias `champion`, by the gate (`rest_core.evaluation.gate`), by force, or back; and their history.

The history is on the registered model: a numbered tag `promotion/00001` a move. Aliases follow it: a version that
becomes champion is no `challenger` any more.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
import re
import secrets
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rest_core.config import GateConfig
from rest_core.errors import UserError
from rest_core.evaluation.gate import Condition, Rival, Verdict, judge
from rest_core.evaluation.paired import Evaluation, read
from rest_core.operations import webhook
from rest_core.operations.tracking import evaluations, registry, store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

_TAG = "promotion/"  # on the registered model, numbered
_RECORD = re.compile(rf"{_TAG}(\d+)(?:-[0-9a-f]+)?")
_MAX_REASON = 1000  # a tag holds 5000 characters


@dataclass(frozen=True)
class Move:
    """A move of the alias `champion`, made or (dry run) only planned."""

    name: str  # of the registered model
    version: str
    previous: str | None  # the champion before
    metric: str
    value: float | None
    previous_value: float | None
    forced: bool
    reason: str | None
    at: str  # UTC, ISO 8601
    actor: str = "unknown"
    kind: Literal["promotion", "rollback"] = "promotion"
    dry_run: bool = False

    def describe(self) -> str:
        """One line for people."""
        verb = "would become" if self.dry_run else "is now"
        before = f" in place of version {self.previous}{_figure(self.previous_value)}" if self.previous else ""
        how = "rolled back" if self.kind == "rollback" else f"{self.metric}{_figure(self.value)}"
        forced = ", forced" if self.forced else ""
        return f"{self.name} version {self.version} {verb} {registry.CHAMPION}{before}: {how}{forced}"


class Refused(UserError):
    """The gate is not passed."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


@store.asks
def promote(
    client: MlflowClient,
    name: str,
    gate: GateConfig,
    *,
    version: str | int | None = None,
    force: bool = False,
    dry_run: bool = False,
    reason: str | None = None,
) -> tuple[Move, Verdict]:
    """Make a version the champion, and note it in the history.

    Args:
        client: from `store.connect`.
        name: the registered model.
        gate: what the version must show.
        version: number or alias; None is `challenger`.
        force: move the alias although the gate refuses, or the checkpoint cannot be seen from here; the history
            says so. One that is gone is not promoted.
        dry_run: check everything and change nothing.
        reason: free text for the history.

    Raises:
        Refused: the gate is not passed.
        UserError: nothing to promote, its checkpoint is gone, or the webhook does not answer; the alias has moved then.
    """
    candidate = registry.get_version(client, name, version)
    incumbent = registry.champion(client, name)
    number = str(candidate.version)
    if incumbent is not None and str(incumbent.version) == number:
        raise UserError(f"{name} version {number} is {registry.CHAMPION} already; give another --version")
    verdict, values = _judged(client, gate, candidate, incumbent)
    if (unseen := _require_files(client, candidate)) is not None:
        verdict = Verdict((*verdict.conditions, unseen))
    if not verdict.passed and not force:
        raise Refused(
            f"{name} version {number} is not promoted: {verdict.reason}; --force promotes it all the same", verdict
        )
    move = Move(
        name=name,
        version=number,
        previous=str(incumbent.version) if incumbent else None,
        metric=gate.metric,
        value=values[0],
        previous_value=values[1],
        forced=not verdict.passed,
        reason=reason[:_MAX_REASON] if reason else None,
        at=_now(),
        actor=_actor(),
        dry_run=dry_run,
    )
    if not dry_run:
        _make(client, move, gate.webhook)
    return move, verdict


@store.asks
def would_promote(client: MlflowClient, name: str, gate: GateConfig, version: str) -> tuple[Verdict, str]:
    """Whether the gate lets a version pass, and the answer in one line; nothing is changed."""
    try:
        move, verdict = promote(client, name, gate, version=version, dry_run=True)
    except Refused as refusal:
        return (
            refusal.verdict,
            f"{name} version {version} would not become {registry.CHAMPION}: {refusal.verdict.reason}",
        )
    except UserError as problem:  # it is champion already, which a retried stage may find
        return Verdict((Condition("promotion", "", str(problem), False),)), str(problem)
    return verdict, move.describe()


@store.asks
def roll_back(client: MlflowClient, name: str, gate: GateConfig, *, dry_run: bool, reason: str | None) -> Move:
    """Make the champion before this one champion again.

    The gate is not asked: the way back must be open when a champion fails in use.

    Raises:
        UserError: there is no champion, none before it, or that version or its checkpoint was deleted.
    """
    current = registry.champion(client, name) if registry.registered_model(client, name) else None
    if current is None:
        raise UserError(f"{name} has no {registry.CHAMPION}; promote a version first")
    number = str(current.version)
    made = [move for move in history(client, name) if move.version == number and move.kind == "promotion"]
    before = made[-1].previous if made else None
    if before is None:
        raise UserError(f"{name} version {number} is the first {registry.CHAMPION}: there is none before it")
    target = registry.get_version(client, name, before)
    if (unseen := _require_files(client, target)) is not None:
        log.warning("version %s: %s", before, unseen.found)
    move = Move(
        name=name,
        version=str(target.version),
        previous=number,
        metric=gate.metric,
        value=None,
        previous_value=None,
        forced=False,
        reason=reason[:_MAX_REASON] if reason else None,
        at=_now(),
        actor=_actor(),
        kind="rollback",
        dry_run=dry_run,
    )
    if not dry_run:
        _make(client, move, gate.webhook)
    return move


@store.asks
def history(client: MlflowClient, name: str) -> list[Move]:
    """Every move of a model's champion, oldest first.

    Raises:
        UserError: the model is unknown, or somebody has changed a record.
    """
    tags: dict[str, str] = registry.registered_model(client, name).tags
    moves = []
    for key in sorted(filter(_RECORD.fullmatch, tags)):
        try:
            moves.append(Move(name=name, **json.loads(tags[key])))
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{name}: its tag {key} is no record of a promotion; mend or remove it") from None
    return moves


def _judged(
    client: MlflowClient, gate: GateConfig, candidate: ModelVersion, incumbent: ModelVersion | None
) -> tuple[Verdict, tuple[float | None, float | None]]:
    """The verdict on a version, by the evaluations that MLflow has; and the figure of both versions."""
    benchmark = gate.metric.partition("/")[0]
    with tempfile.TemporaryDirectory(prefix="rest-promote-") as scratch:
        place = Path(scratch)
        try:
            found = evaluations.of_version(client, candidate, benchmark)
            own = evaluations.download(client, found, place / "candidate")
            base = Rival("base model", _beside(client, candidate, "base", benchmark, place))
            champion = None
            if incumbent is not None:
                title = f"champion, version {incumbent.version}"
                champion = Rival(title, _of_champion(client, candidate, incumbent, benchmark, place))
            verdict = judge(gate, own, champion=champion, base=base)
            values = [
                _value(gate, one) if isinstance(one, Path) else None
                for one in (own, champion.evaluation if champion else None)
            ]
        except UserError as problem:
            verdict = Verdict((Condition(f"evaluation of version {candidate.version}", "", str(problem), False),))
            values = [None, None]
    if gate.approval_tag is not None:
        approved = candidate.tags.get(gate.approval_tag, "")
        wanted = f"the tag {gate.approval_tag!r} on version {candidate.version}"
        approval = Condition("approval", wanted, approved or "no such tag", bool(approved))
        verdict = Verdict((*verdict.conditions, approval))
    return verdict, (values[0], values[1])


def _require_files(client: MlflowClient, version: ModelVersion) -> Condition | None:
    """Raise `UserError` for a version whose checkpoint is gone; where one cannot look, a condition that is not met."""
    title = f"{version.name} version {version.version}"
    try:
        missing = registry.missing_files(client, version)
    except UserError as problem:
        return Condition("checkpoint", "seen where the registry says that it is", str(problem), False)
    if missing:
        raise UserError(
            f"{title}: its checkpoint is not at {registry.location_of(client, version)} any more (no "
            f"{', no '.join(missing)}); register the model again, or give another version"
        )
    return None


def _of_champion(
    client: MlflowClient, candidate: ModelVersion, incumbent: ModelVersion, benchmark: str, place: Path
) -> Path | str:
    """The champion's evaluation beside the candidate's, on the same items; else the one that it was registered with."""
    beside = _beside(client, candidate, "champion", benchmark, place)
    if isinstance(beside, Path) and read(beside)[0].model == f"{incumbent.name} version {incumbent.version}":
        return beside
    try:
        found = evaluations.of_version(client, incumbent, benchmark)
        return evaluations.download(client, found, place / "incumbent")
    except UserError as problem:
        return str(problem)


def _beside(
    client: MlflowClient,
    candidate: ModelVersion,
    policy: Literal["base", "champion"],
    benchmark: str,
    place: Path,
) -> Path | str:
    """The evaluation of another policy that the candidate was registered with; else why there is none."""
    try:
        found = evaluations.of_version(client, candidate, benchmark, policy)
        return evaluations.download(client, found, place / policy)
    except UserError as problem:
        return str(problem)


def _value(gate: GateConfig, directory: Path) -> float | None:
    """The deciding figure in an evaluation; None where it was not measured."""
    evaluation = Evaluation("", directory, *read(directory))
    figure = gate.metric.partition("/")[2]
    known = figure in evaluation.averages or figure in evaluation.verdicts
    return evaluation.value(figure) if known else None


def _make(client: MlflowClient, move: Move, url: str | None) -> None:
    """The history first, the alias last: a record without its move can be seen, a move without its record cannot."""
    model = client.get_registered_model(move.name)
    number = 1 + max((int(found[1]) for tag in model.tags if (found := _RECORD.fullmatch(tag))), default=0)
    tag = f"{_TAG}{number:05d}-{secrets.token_hex(3)}"  # of two moves at the same moment both have the number
    record = {key: value for key, value in asdict(move).items() if key not in ("name", "dry_run")}
    client.set_registered_model_tag(move.name, tag, json.dumps(record, ensure_ascii=False))
    client.set_registered_model_alias(move.name, registry.CHAMPION, move.version)
    if str(model.aliases.get(registry.CHALLENGER)) == move.version:
        client.delete_registered_model_alias(move.name, registry.CHALLENGER)
    _say_on_card(client, move.name, move.version, move.describe())
    if move.previous is not None:
        until = f"{move.name} version {move.previous} was {registry.CHAMPION} until {move.at[:10]}"
        _say_on_card(client, move.name, move.previous, until)
    if url is not None:
        _call(url, move)


def _say_on_card(client: MlflowClient, name: str, number: str, line: str) -> None:
    """Put a line in place of the gate's verdict at the head of a version's card, where it has one."""
    version = registry.existing(client.get_model_version, name, number)
    verdict, _, card = str(version.description or "" if version else "").partition("\n")
    if verdict.startswith("**") and verdict.endswith("**"):
        client.update_model_version(name, number, description=f"**{line}**\n{card}")


def _call(url: str, move: Move) -> None:
    try:
        webhook.post(url, asdict(move))
    except UserError as problem:
        raise UserError(f"gate.webhook: {move.describe()}, but {problem}; tell it by hand") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _actor() -> str:
    """Who moves the alias: the user of the MLflow server, else of this machine."""
    if user := os.environ.get("MLFLOW_TRACKING_USERNAME"):
        return user
    with suppress(KeyError, OSError):  # an arbitrary UID on a cluster has no name
        return getpass.getuser()
    return f"uid {os.getuid()}"


def _figure(value: float | None) -> str:
    return "" if value is None else f" {value:.4f}"
