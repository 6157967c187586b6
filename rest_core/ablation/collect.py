"""The evaluations of an ablation, read from their directories, and refused where they do not compare.

An evaluation's manifest names the trial whose policy it measured and how that was trained: the directories may come in
any order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rest_core import manifest
from rest_core.ablation.settings import Trial, one_scheme_a_name, reward_of
from rest_core.config import RlConfig, Section, validate
from rest_core.errors import UserError

_MAY_DIFFER = {"weights", "seed", "mirror"}  # in `rl`; where checkpoints are copied to changes no training
TRAINING = "training"  # key of a manifest's inputs: how the evaluated policy was trained


@dataclass
class TrialResult:
    """The figures of one trial."""

    trial: Trial
    metrics: dict[str, float] = field(default_factory=dict)
    measured_on: dict[str, str] = field(default_factory=dict)  # by stage: the questions and settings
    skipped: dict[str, str] = field(default_factory=dict)  # by stage: why there are no figures
    not_finite: dict[str, float] = field(default_factory=dict)  # measured, but no number to compare
    reward: dict[str, Any] = field(default_factory=dict)  # the settings of "reward/after", `reward_of`


@dataclass(frozen=True)
class _Evaluation:
    folder: Path
    stage: str
    trial: Trial
    policy: str  # hash
    training: Mapping[str, Any]
    measured_on: str | None
    skipped: str | None
    metrics: Mapping[str, Any]


def training_record(policy: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a policy's manifest that its evaluation's keeps: settings, inputs and figures of the training."""
    return {"config": policy["config"], "inputs": policy["inputs"], "figures": policy["counts"]}


def collect(folders: Iterable[Path]) -> list[TrialResult]:
    """The results of all trials, by scheme and seed.

    Raises:
        UserError: a folder is no evaluation of a trial, stands twice, or trials differ in more than their schemes and
            seeds say (data, starting policy, other settings, questions): their difference would not be the scheme's.
    """
    evaluations = [_read(folder) for folder in folders]
    if not evaluations:
        raise UserError("there are no evaluations to compare")
    _require_comparable(evaluations)
    results: dict[str, TrialResult] = {}
    first: dict[str, _Evaluation] = {}  # by stage
    policies: dict[str, _Evaluation] = {}  # by trial
    for one in evaluations:
        reward = reward_of(one.training["config"]["rl"])
        result = results.setdefault(one.trial.label, TrialResult(one.trial, reward=reward))
        if one.stage in result.measured_on or one.stage in result.skipped:
            raise UserError(f"{one.folder}: {one.stage} of trial {one.trial.label} is there twice; leave one out")
        known = policies.setdefault(one.trial.label, one)
        if one.policy != known.policy:
            raise UserError(
                f"{one.folder} and {known.folder}: evaluations of other policies of trial {one.trial.label}; "
                "evaluate the one that was trained last"
            )
        if one.measured_on is None:
            result.skipped[one.stage] = one.skipped or "not measured"
        else:
            other = first.setdefault(one.stage, one)
            if one.measured_on != other.measured_on:
                raise UserError(
                    f"{one.folder}: measured on {one.measured_on}, but {other.folder} on {other.measured_on}; "
                    "evaluate both on the same questions with the same settings"
                )
            result.measured_on[one.stage] = one.measured_on
        for name, value in {**_figures(one.metrics), **_figures(one.training["figures"])}.items():
            (result.metrics if math.isfinite(value) else result.not_finite)[name] = value
    one_scheme_a_name(result.trial for result in results.values())
    return sorted(results.values(), key=lambda result: (result.trial.name, result.trial.seed))


def _read(folder: Path) -> _Evaluation:
    made = manifest.read(folder)
    trial, training = made["config"].get("trial"), made["inputs"].get(TRAINING)
    if trial is None or training is None:
        raise UserError(
            f"{folder}: no evaluation of a trial (it was made by {made['stage']}); evaluate a trial's policy"
        )
    skipped = made["counts"].get("skipped")
    metrics = {} if skipped is not None else json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return _Evaluation(
        folder,
        made["stage"],
        validate(Trial, trial, where=f"{folder}: trial"),
        made["inputs"]["policy"],
        training,
        made["counts"].get("measured_on"),
        skipped,
        metrics,
    )


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}


def _require_comparable(evaluations: Sequence[_Evaluation]) -> None:
    """Each setting of the trainings is the same in all trials whose schemes do not replace it."""
    settings = [_comparable(one) for one in evaluations]
    for name in sorted(set().union(*settings)):
        known: tuple[Any, Path] | None = None
        for one, values in zip(evaluations, settings, strict=True):
            if _replaces(one.trial, name):
                continue
            value, folder = known = known or (values.get(name), one.folder)
            if values.get(name) != value:
                raise UserError(
                    f"{one.folder}: {name} is {values.get(name)!r:.80}, but {value!r:.80} in {folder}: "
                    "trials may differ in what their schemes replace, and in the seed"
                )


def _comparable(one: _Evaluation) -> dict[str, Any]:
    config = {name: section for name, section in one.training["config"].items() if name != "trial"}
    config["rl"] = {name: value for name, value in config.get("rl", {}).items() if name not in _MAY_DIFFER}
    return dict(manifest.leaves({**config, "inputs": one.training["inputs"]}))


def _replaces(trial: Trial, name: str) -> bool:
    """Whether a trial's scheme replaces the setting; of a section that may be absent, all of it."""
    for path in trial.settings:
        top = path.partition(".")[0]
        kind = RlConfig.model_fields[top].annotation if top in RlConfig.model_fields else None
        always = isinstance(kind, type) and issubclass(kind, Section)
        scope = f"rl.{path if always else top}"
        if name == scope or name.startswith(f"{scope}."):
            return True
    return False
