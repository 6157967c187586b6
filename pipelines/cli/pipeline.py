"""`rest run | compile | profiles | clean`: the whole pipeline."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Literal

import click

from pipelines.cli.options import (
    FILE,
    api_bank_option,
    configuration,
    configured,
    data_option,
    refuse_beside_resume,
    resume_option,
)
from pipelines.cli.pipeline_options import PipelineOptions, pipeline_options
from rest_core.config import load, profiles
from rest_core.errors import with_notes


@click.command()
@configured
@data_option
@api_bank_option
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the run, new or empty; default: runs/PROFILE-DATE-TIME.",
)
@resume_option
@click.option(
    "--runner",
    type=click.Choice(["subprocess", "docker"]),
    default="subprocess",
    show_default=True,
    help="Each stage as a process, or as a container of the images that `make image` built.",
)
def run(
    profile: str,
    overrides: tuple[str, ...],
    data: str | None,
    api_bank: str | None,
    output: Path | None,
    resume: Path | None,
    runner: Literal["subprocess", "docker"],
) -> None:
    """Run the whole pipeline on this machine.

    The stages run under kfp's own local runners, one after another.

    \b
    Examples:
      rest run
      rest run --profile smollm2-135m --data my_calls.jsonl
      rest run --api-bank data/api-bank --set rl.steps=4 --set sft.enabled=false
      rest run --runner docker
      rest run --resume runs/latest
    """
    from rich.console import Console

    from pipelines.local import StageFailed, run_local
    from pipelines.resume import RunRecord, located, told_how_to_resume
    from pipelines.summary import show
    from rest_core.operations.tracking.runs import SOURCE_VARIABLE

    os.environ[SOURCE_VARIABLE] = "rest run"
    console = Console(file=sys.stdout, highlight=False)  # bound now: the runner sends sys.stdout to its log
    record = None
    if resume is not None:
        refuse_beside_resume("profile", "data", "api_bank", "output", "runner")
        folder = located(resume)
        record = RunRecord.read(folder, "run")
        config, runner = record.configuration(folder, overrides), record.runner
    else:
        config = configuration(profile, overrides, data=data, api_bank=api_bank)
        folder = output or Path("runs") / f"{config.profile}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        with told_how_to_resume(folder, "run"):
            summary = run_local(config, folder=folder, console=console, runner=runner, resumed=record)
    except StageFailed as error:
        click.echo(with_notes(error), err=True)
        sys.exit(1)
    show(summary, console)


@click.command("compile")
@pipeline_options
@click.option("--output", "-o", type=FILE, required=True, metavar="FILE", help="YAML file to write.")
def compile_(chosen: PipelineOptions, output: Path) -> None:
    """Write a pipeline as YAML for a cluster.

    The profile becomes the default of the pipeline's parameters, one parameter a section; a run may replace each.
    Where and how the pods run is part of the YAML: deploy/platform.yaml is a complete example.

    \b
    Examples:
      rest compile --profile qwen3-1.7b --platform deploy/platform.yaml -o rest.yaml
      rest compile --profile qwen3-1.7b --pipeline ablation --seeds 0,1,2 -o ablation.yaml
    """
    from pipelines.build import build
    from pipelines.graph import compile_to

    compile_to(output, build(chosen.config, chosen.platform, chosen.pipeline, **chosen.settings))
    click.echo(f"wrote {output}")


@click.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, file_okay=False, exists=True))
@configured
@click.option("--yes", is_flag=True, help="Remove it; without this, only say what would be removed.")
def clean(folders: tuple[Path, ...], profile: str, overrides: tuple[str, ...], yes: bool) -> None:
    """Remove the models, data and answers of runs that no registered version came from.

    FOLDERS are run folders, or folders with runs below them (default: runs). Summaries, reports and logs stay, and what
    MLflow has; a run that is cleaned cannot be resumed.

    \b
    Examples:
      rest clean
      rest clean --yes
      rest clean runs/tiny-20261129-101500 --yes
    """
    from rich.console import Console

    from pipelines import cleaning
    from rest_core.operations.tracking import versions

    config = configuration(profile, overrides)
    found = list(cleaning.find(list(folders) or [Path("runs")], versions.registered_by(config.tracking)))
    Console(highlight=False).print(cleaning.table(found))
    removed = [run for run in found if not run.kept]
    if yes:
        for run in removed:
            cleaning.remove(run)
    size = f"{sum(run.bytes for run in removed) / 1e9:.2f} GB of {len(removed)} runs"
    click.echo(f"removed {size}" if yes else f"`rest clean --yes` removes {size}")


@click.command("profiles")
def profiles_() -> None:
    """List the profiles that come with the project.

    \b
    Examples:
      rest profiles
    """
    for name in profiles():
        config = load(name)
        rounds = f"{config.rl.steps} RL steps of {config.rl.prompts_per_step} prompts × {config.rl.group_size}"
        click.echo(f"{name:16} {config.model.source}, {rounds}")


COMMANDS = (run, compile_, profiles_, clean)
