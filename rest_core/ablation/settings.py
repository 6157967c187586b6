"""What an ablation runs and compares: its trials, and the settings of the comparison."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import yaml
from pydantic import Field, field_validator

from rest_core.config import RlConfig, Section, WeightsConfig, validate
from rest_core.errors import UserError

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


def check(every: Sequence[Trial], ablation: AblationConfig, rl: RlConfig) -> None:
    """Refuse what would be found out only after hours. Raises `UserError`."""
    names = list(dict.fromkeys(trial.name for trial in every))
    if ablation.baseline not in names:
        raise UserError(
            f"ablation.baseline={ablation.baseline}: no trial has this scheme (there are: {', '.join(names)}); "
            "add it, or name another baseline"
        )
    for trial in every:
        trial.applied_to(rl)
