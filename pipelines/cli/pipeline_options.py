"""What is to run on a cluster, as the options of `rest compile`, `rest submit` and `rest schedule create` say it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from pipelines.cli import ablation
from pipelines.cli.options import (
    FILE,
    Command,
    api_bank_option,
    configuration,
    configured,
    data_option,
    local_path,
    with_options,
)
from rest_core.config import Config
from rest_core.errors import UserError

if TYPE_CHECKING:
    from pipelines.build import PipelineName
    from pipelines.platform import Platform


@dataclass(frozen=True)
class PipelineOptions:
    """A pipeline under a configuration, for a platform."""

    config: Config
    platform_file: Path | None
    pipeline: PipelineName
    trials: dict[str, Any]  # of an ablation: its options as they were given
    no_cache: bool = False

    @functools.cached_property
    def platform(self) -> Platform:
        from pipelines.platform import Platform, load_platform

        platform = Platform() if self.platform_file is None else load_platform(self.platform_file)
        return platform.model_copy(update={"cache": False}) if self.no_cache else platform

    @property
    def given_platform(self) -> Platform | None:
        """That of the platform file; None where there is none, so that kfp's context file may name the namespace."""
        return self.platform if self.platform_file else None

    @property
    def settings(self) -> dict[str, Any]:
        """Of the pipeline besides configuration and platform (`pipelines.build.build`)."""
        return {} if self.pipeline == "rest" else ablation.settings(self.config, **self.trials)


def pipeline_options(command: Command) -> Command:
    """Give a command the options that say what to run; it gets them as `chosen`."""
    options = (
        data_option,
        api_bank_option,
        click.option(
            "--pipeline",
            type=click.Choice(["rest", "ablation"]),
            default="rest",
            show_default=True,
            help="One training, or weight schemes compared over seeds.",
        ),
        ablation.trials,
        click.option(
            "--parallelism",
            type=click.IntRange(min=0),
            default=1,
            show_default=True,
            help="Trials of an ablation at the same time; 0 = all.",
        ),
        click.option(
            "--platform",
            "platform_file",
            type=FILE,
            metavar="FILE",
            help="Where and how the pods run (deploy/platform.yaml); default: the cluster's defaults, this "
            "version's images.",
        ),
        click.option("--no-cache", is_flag=True, help="Run every stage: take nothing from KFP's cache."),
    )

    @functools.wraps(command)
    def wrapped(
        *arguments: Any,
        profile: str,
        overrides: tuple[str, ...],
        data: str | None,
        api_bank: str | None,
        platform_file: Path | None,
        pipeline: PipelineName,
        no_cache: bool,
        **others: Any,
    ) -> Any:
        trials = {
            key: others.pop(key) for key in ("schemes", "seeds", "baseline", "metric", "confidence", "parallelism")
        }
        given = click.get_current_context().get_parameter_source
        if pipeline == "rest" and any(given(key) is ParameterSource.COMMANDLINE for key in trials):
            raise UserError(
                "--scheme, --seeds and the like belong to --pipeline ablation; for one training: --set rl.seed=1 --set "
                "'rl.weights={scheme: uniform}'"
            )
        before = ablation.defaults() if pipeline == "ablation" else ()
        config = configuration(profile, (*before, *overrides), data=data, api_bank=api_bank)
        _require_portable(config)
        return command(*arguments, chosen=PipelineOptions(config, platform_file, pipeline, trials, no_cache), **others)

    return configured(with_options(wrapped, options))


def _require_portable(config: Config) -> None:
    """The YAML goes to other machines: no path of this one."""
    for name, location in config.inputs():
        if local_path(location):
            raise UserError(
                f"{name} is a path of this machine ({location}), which a pod does not have: give an s3:// URI, a hub "
                "id, embedded:NAME or published:NAME"
            )
