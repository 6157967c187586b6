"""`rest ablate | aggregate`: weight schemes compared over seeds."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pipelines.cli.options import (
    Command,
    api_bank_option,
    configuration,
    configured,
    data_option,
    refuse_beside_resume,
    resume_option,
    with_options,
)
from rest_core.errors import UserError, with_notes

if TYPE_CHECKING:
    from rest_core.ablation.settings import AblationConfig
    from rest_core.config import Config


def compared(command: Command) -> Command:
    """Give a command the options of a comparison; it passes them to `_settings`."""
    options = (
        click.option(
            "--baseline",
            default="uniform",
            show_default=True,
            metavar="NAME",
            help="Scheme that the others are held against.",
        ),
        click.option("--metric", metavar="NAME", help="The figure that decides; default: the profile's gate.metric."),
        click.option("--confidence", type=float, default=0.95, show_default=True, help="Of the intervals."),
    )
    return with_options(command, options)


def trials(command: Command) -> Command:
    """Give a command the options that say what is trained and compared; it passes them to `settings`."""
    options = (
        click.option(
            "--scheme",
            "schemes",
            multiple=True,
            default=("uniform", "paper"),
            show_default=True,
            metavar="NAME[={...}]",
            help="A weight scheme; or settings of one, and below rl of the training, under a name of its own. May be "
            "given again.",
        ),
        click.option(
            "--seeds", default="0,1,2", show_default=True, metavar="N,N,…", help="Seeds of the training (rl.seed)."
        ),
        compared,
    )
    return with_options(command, options)


@click.command()
@configured
@data_option
@api_bank_option
@trials
@click.option(
    "--parallelism",
    type=click.IntRange(1, 2),
    default=1,
    show_default=True,
    help="Trials at the same time; each takes the memory of a training.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the run, new or empty; default: runs/PROFILE-ablation-DATE-TIME.",
)
@resume_option
def ablate(
    profile: str,
    overrides: tuple[str, ...],
    data: str | None,
    api_bank: str | None,
    schemes: tuple[str, ...],
    seeds: str,
    baseline: str,
    metric: str | None,
    confidence: float,
    parallelism: int,
    output: Path | None,
    resume: Path | None,
) -> None:
    """Train with several weight schemes and seeds on this machine, and compare.

    Data and warm-up are shared; each scheme is trained and evaluated once a seed.

    \b
    Examples:
      rest ablate
      rest ablate --scheme uniform --scheme paper --scheme mask_only --seeds 0,1,2,3,4
      rest ablate --scheme uniform --scheme paper --scheme 'entropy-only={scheme: paper, curriculum: false}'
      rest ablate --scheme uniform --scheme 'dr-grpo={scheme: uniform, rl: {advantage_std: none, loss:
        {aggregation: constant_length}}}'
      rest ablate --resume runs/latest
    """
    from rich.console import Console

    from pipelines.local import StageFailed
    from pipelines.local_ablation import run_ablation, show
    from pipelines.resume import RunRecord, Trials, located, told_how_to_resume
    from rest_core.operations.tracking.runs import SOURCE_VARIABLE

    os.environ[SOURCE_VARIABLE] = "rest ablate"

    console = Console(file=sys.stdout, highlight=False)  # bound now: the runner sends sys.stdout to its log
    record = None
    if resume is not None:
        refuse_beside_resume(*(set(click.get_current_context().params) - {"resume", "overrides"}))
        folder = located(resume)
        record = RunRecord.read(folder, "ablate")
        config, compared_trials = record.configuration(folder, overrides), record.trials
        assert compared_trials is not None
    else:
        config = configuration(profile, (*defaults(), *overrides), data=data, api_bank=api_bank)
        folder = output or Path("runs") / f"{config.profile}-ablation-{time.strftime('%Y%m%d-%H%M%S')}"
        compared_trials = Trials(
            **settings(
                config,
                schemes=schemes,
                seeds=seeds,
                baseline=baseline,
                metric=metric,
                confidence=confidence,
                parallelism=parallelism,
            )
        )
    try:
        with told_how_to_resume(folder, "ablate"):
            summary = run_ablation(config, compared_trials, folder=folder, console=console, resumed=record)
    except StageFailed as error:
        click.echo(with_notes(error), err=True)
        sys.exit(1)
    show(summary, console)


@click.command()
@click.argument("evaluations", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False, exists=True))
@configured
@compared
@click.option("--run-name", metavar="NAME", help="Pipeline run in MLflow that receives the report; default: a new one.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder that the report is written to.",
)
def aggregate(
    evaluations: tuple[Path, ...],
    profile: str,
    overrides: tuple[str, ...],
    baseline: str,
    metric: str | None,
    confidence: float,
    run_name: str | None,
    out: Path,
) -> None:
    """Compare trials that were evaluated before.

    EVALUATIONS are the output folders of evaluate-bfcl and evaluate-api-bank, in any order: each says which trial it
    is of.

    \b
    Examples:
      rest aggregate runs/x/artifacts/*/*/evaluate-bfcl-trained/report --baseline paper --out again
    """
    config = configuration(profile, overrides)
    import logging

    from rest_core import logs
    from rest_core.operations.tracking.runs import new_pipeline_run
    from rest_core.stages.comparison import aggregate as compare

    logs.configure(sys.stderr, level=logging.WARNING, libraries=())
    compare(
        ablation=_settings(baseline, metric or config.gate.metric, confidence),
        tracking=config.tracking,
        pipeline_run=run_name or new_pipeline_run("aggregate"),
        evaluations={"trained": {"given": evaluations}},
        out=out,
    )
    click.echo(f"wrote {out / 'report.html'}")


def defaults() -> tuple[str, ...]:
    """What an ablation sets before the user does, as --set has it."""
    from rest_core.ablation.settings import DEFAULTS

    return DEFAULTS


def settings(
    config: Config,
    *,
    schemes: tuple[str, ...],
    seeds: str,
    baseline: str,
    metric: str | None,
    confidence: float,
    parallelism: int,
) -> dict[str, Any]:
    """What the options of `trials` and --parallelism say, as keywords of `pipelines.ablation_pipeline.build`."""
    from rest_core.ablation.settings import parse_schemes

    return {
        "schemes": parse_schemes(schemes),
        "seeds": _seeds(seeds),
        "ablation": _settings(baseline, metric or config.gate.metric, confidence),
        "parallelism": parallelism,
    }


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--seeds {text!r}: write whole numbers with commas between, such as 0,1,2") from None


def _settings(baseline: str, metric: str, confidence: float) -> AblationConfig:
    from rest_core.ablation.settings import AblationConfig
    from rest_core.config import validate

    values = {"baseline": baseline, "metric": metric, "confidence": confidence}
    return validate(AblationConfig, values, where="ablation")


COMMANDS = (ablate, aggregate)
