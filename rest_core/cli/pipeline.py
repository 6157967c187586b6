"""`rest run | compile | profiles`: the whole pipeline."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import click

from rest_core.cli.options import api_bank_option, configuration, configured, data_option
from rest_core.config import Config, load, profiles
from rest_core.errors import UserError


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
def run(profile: str, overrides: tuple[str, ...], data: str | None, api_bank: str | None, output: Path | None) -> None:
    """Run the whole pipeline on this machine.

    The stages run under kfp's own local runner, one after another.

    \b
    Examples:
      rest run
      rest run --profile smollm2-135m --data my_calls.jsonl
      rest run --api-bank data/api-bank --set rl.steps=4 --set sft.enabled=false
    """
    config = configuration(profile, overrides, data=data, api_bank=api_bank)
    from rich.console import Console

    from pipelines.local import StageFailed, run_local
    from pipelines.summary import show

    console = Console(file=sys.stdout, highlight=False)  # bound now: the runner sends sys.stdout to its log
    folder = output or Path("runs") / f"{config.profile}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        summary = run_local(config, folder=folder, console=console)
    except StageFailed as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    show(summary, console)


@click.command("compile")
@configured
@data_option
@api_bank_option
@click.option(
    "--platform",
    "platform_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="platform.yaml: images, resources, volumes, Secrets of the pods; default: what the cluster gives by itself.",
)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="FILE",
    help="YAML file to write.",
)
def compile_(
    profile: str,
    overrides: tuple[str, ...],
    data: str | None,
    api_bank: str | None,
    platform_file: Path | None,
    output: Path,
) -> None:
    """Write the pipeline as YAML for a cluster.

    The profile becomes the default of the pipeline's parameters, one parameter a section; a run may replace each.
    Where and how the pods run is part of the YAML: deploy/platform.yaml is a complete example.

    \b
    Examples:
      rest compile --profile qwen3-1.7b --platform deploy/platform.yaml -o rest.yaml
    """
    config = configuration(profile, overrides, data=data, api_bank=api_bank)
    _require_portable(config)
    from pipelines.platform import Platform, load_platform
    from pipelines.rest_pipeline import build, compile_to

    platform = Platform() if platform_file is None else load_platform(platform_file)
    compile_to(output, build(config, platform=platform))
    click.echo(f"wrote {output}")


def _require_portable(config: Config) -> None:
    """The YAML goes to other machines and into a database: no path of this machine, no password."""
    locations = [("data.sources", source.location) for source in config.data.sources]
    locations += [("model.source", config.model.source), ("api_bank.location", config.api_bank.location or "")]
    for name, location in locations:
        if location and Path(location).expanduser().exists():
            raise UserError(
                f"{name} is a path of this machine ({location}), which a pod does not have: give an s3:// URI, a hub "
                "id, embedded:NAME or published:NAME"
            )
    if config.tracking.uri and urlsplit(config.tracking.uri).password is not None:
        raise UserError(
            "tracking.uri holds a password, which would stand in the YAML: leave it out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the pods from a secret"
        )


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
