"""The trials of an ablation, and the settings of their comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field, field_validator

from rest_core.algorithm.rewards import reward_ranges
from rest_core.config import ApiBankConfig, BfclConfig, RlConfig, Section, WeightsConfig, validate
from rest_core.data.fields import map_json
from rest_core.errors import UserError, nearest
from rest_core.evaluation import api_bank as api_bank_benchmark
from rest_core.evaluation.bfcl import categories
from rest_core.evaluation.statistics import Accuracy
from rest_core.manifest import leaves
from rest_core.yaml_text import parse_yaml

# Names go into MLflow's filters, keys of metrics and tags, and file names.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$"

_SHOWN = 120  # characters of a scheme, in a message
# Settings that an ablation has where the user sets nothing else, written as --set has them.
DEFAULTS: tuple[str, ...] = ("rl.weight_mean=trained",)  # schemes that differ in the gradient's size do not compare
# Fields that no scheme may set, and where they are set instead.
_NOT_A_TRIALS = {"weights": "`weights`", "seed": "`seed`", "enabled": "the ablation", "mirror": "the ablation"}


class Scheme(Section):
    """A scheme that is compared: token weights, and other settings of the training where these differ too."""

    weights: WeightsConfig = Field(discriminator="scheme", description="replaces rl.weights")
    rl: dict[str, Any] = Field(
        {}, description="replaces further fields of rl: only the keys given change, sections below are merged"
    )

    @field_validator("rl")
    @classmethod
    def _of_its_own(cls, values: dict[str, Any]) -> dict[str, Any]:
        for name, owner in _NOT_A_TRIALS.items():
            if name in values:
                raise ValueError(f"{name} is no setting of a scheme: {owner} has it; leave it out here")
        return map_json(values, lambda value: None if value == "null" else value)  # as KFP's parameters write it

    @property
    def settings(self) -> tuple[str, ...]:
        """The fields of `rl` that it replaces, as paths: ("advantage_std", "loss.aggregation")."""
        return tuple(name for name, _ in leaves(self.rl))


class Trial(Scheme):
    """One training of an ablation: a scheme and a seed."""

    name: str = Field(pattern=_NAME, description="name of the scheme in the report; its trials differ by seed alone")
    seed: int = Field(ge=0, description="replaces rl.seed")

    @property
    def label(self) -> str:
        """Name of the trial's run in MLflow."""
        return f"{self.name} · seed {self.seed}"

    @property
    def text(self) -> str:
        """The trial as `rest train --trial` has it, beside a configuration that is already the trial's."""
        return f"{self.name}={','.join(self.settings)}" if self.settings else self.name

    @property
    def scheme(self) -> Scheme:
        """The part that all trials of its name share."""
        return Scheme(weights=self.weights, rl=self.rl)

    def applied_to(self, rl: RlConfig) -> RlConfig:
        """The training's settings with this trial's; `UserError` where these do not fit."""
        values = _merged(rl.model_dump(), self.rl) | {"weights": self.weights.model_dump(), "seed": self.seed}
        return validate(RlConfig, values, where=f"trial {self.label}: rl")


def as_trained(text: str, rl: RlConfig) -> Trial:
    """The trial that a training under `rl` is.

    Args:
        text: "NAME", or "NAME=SETTING,SETTING": fields of `rl` besides weights and seed in which the scheme differs
            from the others, as `Trial.text` writes it.

    Raises:
        UserError: the name is not usable, or `rl` has no such field.
    """
    name, separator, listed = text.partition("=")
    known = dict(leaves(rl.model_dump(mode="json")))
    changes: dict[str, Any] = {}
    for path in listed.split(",") if separator else ():
        if path not in known:
            raise UserError(f"--trial {text!r}: rl has no field {path!r}{nearest(path, known)}")
        *sections, last = path.split(".")
        place = changes
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = known[path]
    values = {"name": name, "seed": rl.seed, "weights": rl.weights.model_dump(), "rl": changes}
    return validate(Trial, values, where="--trial")


def reward_of(rl: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the reward after the last step: mean rewards compare where these are the same.

    Args:
        rl: an `RlConfig` as JSON values.
    """
    found = {name: rl[name] for name in ("reward_weight", "reward_functions", "overlong")}
    if rl["reward_weight"]:
        found |= {name: rl[name] for name in ("reward", "reward_one_call_a_line")}
        found["ranges"] = reward_ranges(rl["reward"], rl["steps"])  # those of `rest` move with the steps
    if rl["overlong"] is not None:
        found["limit"] = rl["max_response_tokens"]
    return found


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, value in changes.items():
        known = merged.get(name)
        merged[name] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


class AblationConfig(Section):
    """How the trials are compared."""

    baseline: str = Field("uniform", description="name of the scheme that the others are compared with")
    metric: str = Field("bfcl/call_accuracy", description="the figure that decides; chosen before the trials are run")
    metrics: tuple[str, ...] = Field(
        (
            "bfcl/irrelevance_accuracy",
            "bfcl/non_live",
            "bfcl/live",
            "api_bank/overall_soft",
            "api_bank/overall_strict",
            "reward/after",
        ),
        description="figures that are shown besides, where they were measured",
    )
    confidence: float = Field(0.95, gt=0, lt=1, description="of the intervals")

    @field_validator("metrics")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(value))

    @property
    def shown(self) -> tuple[str, ...]:
        """The deciding figure, then the others."""
        return tuple(dict.fromkeys((self.metric, *self.metrics)))


def parse_schemes(texts: Iterable[str]) -> dict[str, Scheme]:
    """Schemes as they are written on a command line, by name.

    `paper` is the weight scheme with its defaults; `no-curriculum={scheme: paper, curriculum: false}` is one with other
    settings under a name of its own; below `rl` stand further settings of the training:
    `dr-grpo={scheme: uniform, rl: {advantage_std: none, loss: {aggregation: constant_length}}}`.

    Raises:
        UserError: a name stands twice, or a scheme is not one.
    """
    schemes: dict[str, Scheme] = {}
    for text in texts:
        name, separator, settings = text.partition("=")
        where = f"scheme {text[:_SHOWN]!r}"
        written_as = f"{where}: write it as NAME or NAME={{scheme: …, …}}"
        weights = parse_yaml(settings, where=written_as) if separator else {"scheme": name}
        rl = weights.pop("rl", {}) if isinstance(weights, dict) else {}
        if name in schemes:
            raise UserError(f"scheme {name!r} is given twice: write the second as OTHER-NAME={{scheme: {name}}}")
        values = {"name": name, "seed": 0, "weights": weights, "rl": rl}
        schemes[name] = validate(Trial, values, where=where).scheme
    return schemes


def trials(schemes: Mapping[str, Scheme], seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Every scheme with every seed, seed by seed, so that the first trials compare already.

    Raises:
        UserError: there are no schemes or seeds, a seed stands twice, or a name is not usable.
    """
    if not schemes or not seeds:
        raise UserError("an ablation needs at least one scheme and one seed")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {', '.join(map(str, seeds))}: one stands twice")
    return tuple(
        validate(Trial, {"name": name, "seed": seed, **scheme.model_dump()}, where=f"trial {name}")
        for seed in seeds
        for name, scheme in schemes.items()
    )


def one_scheme_a_name(every: Iterable[Trial]) -> dict[str, Trial]:
    """The first trial of each scheme; `UserError` where a name stands for two."""
    first: dict[str, Trial] = {}
    for trial in every:
        known = first.setdefault(trial.name, trial)
        if known.scheme != trial.scheme:
            raise UserError(
                f"trials {known.label} and {trial.label} have other weights or settings under one name; name them apart"
            )
    return first


def check(
    every: Sequence[Trial], ablation: AblationConfig, rl: RlConfig, bfcl: BfclConfig, api_bank: ApiBankConfig
) -> str:
    """Refuse trials of which nothing can be compared, before the hours that they take.

    Returns:
        A line that names the number of schemes and trials, and the deciding figure.

    Raises:
        UserError: there are no trials or one stands twice, schemes are the same or without a baseline, nothing is
            trained, or the deciding figure is not measured.
    """
    if not every:
        raise UserError("an ablation needs at least one trial")
    labels = Counter(trial.label for trial in every)
    for label, count in labels.items():
        if count > 1:
            raise UserError(f"trial {label} stands twice; leave one out, or name it apart")
    schemes = one_scheme_a_name(every)
    if not rl.enabled:
        raise UserError("rl.enabled=false: the schemes weight the reinforcement learning; set rl.enabled=true")
    applied = {name: trial.applied_to(rl).model_copy(update={"seed": 0}) for name, trial in schemes.items()}
    for name, settings in applied.items():
        same = next(other for other, theirs in applied.items() if theirs == settings)
        if same != name:
            raise UserError(
                f"schemes {same} and {name} have the same weights and settings: their difference is chance; leave one "
                "out"
            )
    if ablation.baseline not in schemes:
        raise UserError(
            f"ablation.baseline={ablation.baseline}: no trial has this scheme (there are: {', '.join(schemes)}); "
            "add it, or name another baseline"
        )
    _check_metric(ablation.metric, applied, bfcl, api_bank)
    return f"{len(schemes)} schemes in {len(every)} trials, compared by {ablation.metric}"


def _check_metric(metric: str, schemes: Mapping[str, RlConfig], bfcl: BfclConfig, api_bank: ApiBankConfig) -> None:
    """The deciding figure is measured by every scheme, and by the same reward where it is one."""
    for name, settings in schemes.items():
        known = measured(settings, bfcl, api_bank)
        if metric not in known:
            raise UserError(
                f"ablation.metric={metric}: scheme {name} does not measure it{nearest(metric, known)} "
                f"(it measures: {', '.join(known)})"
            )
    rewards = {name: reward_of(settings.model_dump(mode="json")) for name, settings in schemes.items()}
    first = next(iter(rewards))
    for name, reward in rewards.items():
        if metric == "reward/after" and reward != rewards[first]:
            raise UserError(
                f"ablation.metric=reward/after: schemes {first} and {name} are measured by other rewards, which "
                "do not compare; decide by a figure of the task"
            )


def measured(rl: RlConfig, bfcl: BfclConfig, api_bank: ApiBankConfig) -> list[str]:
    """The figures that an ablation may be decided by, under a configuration."""
    found = []
    if bfcl.enabled:
        scores = {category.name: Accuracy(1, 1) for category in categories.select(bfcl.categories)}
        found += [f"bfcl/{name}" for name in (*categories.averages(scores), *scores)]
    if api_bank.enabled:
        found += [f"api_bank/{name}" for name in api_bank_benchmark.SCORES]
    if rl.reward_probe_prompts:
        found.append("reward/after")
    if rl.evaluate_every is not None:
        found += ["task/last/accuracy", "task/last/call_accuracy", "task/best"]
    return found
