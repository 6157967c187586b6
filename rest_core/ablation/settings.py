"""What an ablation runs and compares: its trials, and the settings of the comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml
from pydantic import Field, field_validator

from rest_core.config import ApiBankConfig, BfclConfig, RlConfig, Section, WeightsConfig, validate
from rest_core.errors import UserError, nearest
from rest_core.evaluation import api_bank as api_bank_scores
from rest_core.evaluation.bfcl import categories
from rest_core.evaluation.statistics import Score

# Names go into MLflow's filters, keys of metrics and tags, and file names.
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,59}$"


class Trial(Section):
    """One training of an ablation: a weight scheme and a seed."""

    name: str = Field(pattern=_NAME, description="name of the scheme in the report; its trials differ by seed alone")
    seed: int = Field(ge=0, description="replaces rl.seed")
    weights: WeightsConfig = Field(discriminator="scheme", description="replaces rl.weights")

    @property
    def label(self) -> str:
        """Name of the trial's run in MLflow."""
        return f"{self.name} · seed {self.seed}"

    def applied_to(self, rl: RlConfig) -> RlConfig:
        """The training's settings with this trial's weights and seed; `UserError` where these do not fit."""
        values = {**rl.model_dump(), "weights": self.weights.model_dump(), "seed": self.seed}
        return validate(RlConfig, values, where=f"trial {self.label}: rl")


class AblationConfig(Section):
    """How the trials are compared."""

    baseline: str = Field("uniform", description="name of the scheme that the others are compared with")
    metric: str = Field("bfcl/overall", description="the figure that decides; chosen before the trials are run")
    metrics: tuple[str, ...] = Field(
        ("bfcl/non_live", "bfcl/live", "api_bank/overall_soft", "api_bank/overall_strict", "reward/after"),
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


def parse_schemes(texts: Iterable[str]) -> dict[str, WeightsConfig]:
    """Schemes as they are written on a command line, by name.

    `paper` is the scheme with its defaults; `no-curriculum={scheme: paper, curriculum: false}` is a scheme with other
    settings under a name of its own.

    Raises:
        UserError: a name stands twice, or a scheme is not one.
    """
    schemes: dict[str, WeightsConfig] = {}
    for text in texts:
        name, separator, settings = text.partition("=")
        try:
            weights = yaml.safe_load(settings) if separator else {"scheme": name}
        except yaml.YAMLError:
            raise UserError(f"scheme {text!r}: write it as NAME or NAME={{scheme: …, …}}") from None
        if name in schemes:
            raise UserError(f"scheme {name!r} is given twice: write the second as OTHER-NAME={{scheme: {name}}}")
        schemes[name] = validate(Trial, {"name": name, "seed": 0, "weights": weights}, where=f"scheme {text!r}").weights
    return schemes


def trials(schemes: Mapping[str, WeightsConfig], seeds: Sequence[int]) -> tuple[Trial, ...]:
    """Every scheme with every seed, seed by seed, so that what is done first can be compared.

    Raises:
        UserError: there are no schemes or seeds, a seed stands twice, or a name is not usable.
    """
    if not schemes or not seeds:
        raise UserError("an ablation needs at least one scheme and one seed")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"seeds {', '.join(map(str, seeds))}: one stands twice")
    return tuple(
        validate(Trial, {"name": name, "seed": seed, "weights": weights.model_dump()}, where=f"trial {name}")
        for seed in seeds
        for name, weights in schemes.items()
    )


def check(
    every: Sequence[Trial], ablation: AblationConfig, rl: RlConfig, bfcl: BfclConfig, api_bank: ApiBankConfig
) -> str:
    """Refuse what would be found out only after hours: trials of which nothing can be compared.

    Returns:
        What the trials are, in one line.

    Raises:
        UserError: there are no trials or one stands twice, schemes are the same or without a baseline, nothing is
            trained, or the deciding figure is not measured.
    """
    if not every:
        raise UserError("an ablation needs at least one trial")
    schemes: dict[str, WeightsConfig] = {}
    labels = [trial.label for trial in every]
    for trial in every:
        if labels.count(trial.label) > 1:
            raise UserError(f"trial {trial.label} stands twice; leave one out, or name it apart")
        if schemes.setdefault(trial.name, trial.weights) != trial.weights:
            raise UserError(f"scheme {trial.name} has other weights in trial {trial.label}; name them apart")
    for name, weights in schemes.items():
        same = next(other for other, theirs in schemes.items() if theirs == weights)
        if same != name:
            raise UserError(
                f"schemes {same} and {name} have the same weights: their difference is chance; leave one out"
            )
    if ablation.baseline not in schemes:
        raise UserError(
            f"ablation.baseline={ablation.baseline}: no trial has this scheme (there are: {', '.join(schemes)}); "
            "add it, or name another baseline"
        )
    if not rl.enabled:
        raise UserError("rl.enabled=false: the schemes weight the reinforcement learning; set rl.enabled=true")
    for trial in every:
        trial.applied_to(rl)
    known = measured(rl, bfcl, api_bank)
    if ablation.metric not in known:
        raise UserError(
            f"ablation.metric={ablation.metric}: this configuration does not measure it"
            f"{nearest(ablation.metric, known)} (it measures: {', '.join(known)})"
        )
    return f"{len(schemes)} schemes in {len(every)} trials, compared by {ablation.metric}"


def measured(rl: RlConfig, bfcl: BfclConfig, api_bank: ApiBankConfig) -> list[str]:
    """The figures that an ablation may be decided by, under a configuration."""
    found = []
    if bfcl.enabled:
        scores = {category.name: Score(1, 1) for category in categories.select(bfcl.categories)}
        found += [f"bfcl/{name}" for name in (*categories.averages(scores), *scores)]
    if api_bank.enabled:
        found += [f"api_bank/{name}" for name in api_bank_scores.SCORES]
    if rl.reward_probe_prompts:
        found.append("reward/after")
    if rl.evaluate_every is not None:
        found.append("task/best")
    return found
