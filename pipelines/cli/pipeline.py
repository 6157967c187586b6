"""`rest run | compile | profiles`: the whole pipeline."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Literal

import click

from pipelines.cli.options import FILE, api_bank_option, configuration, configured, data_option
from pipelines.cli.pipeline_options import PipelineOptions, pipeline_options
from rest_core.config import load, profiles


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
    """
    config = configuration(profile, overrides, data=data, api_bank=api_bank)
    from rich.console import Console

    from pipelines.local import StageFailed, run_local
    from pipelines.summary import show
    from rest_core.operations.tracking.runs import SOURCE_VARIABLE

    os.environ[SOURCE_VARIABLE] = "rest run"
    console = Console(file=sys.stdout, highlight=False)  # bound now: the runner sends sys.stdout to its log
    folder = output or Path("runs") / f"{config.profile}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        summary = run_local(config, folder=folder, console=console, runner=runner)
    except StageFailed as error:
        click.echo(str(error), err=True)
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


COMMANDS = (run, compile_, profiles_)
