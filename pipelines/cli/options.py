"""Options that several commands share, and the configuration that they amount to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from rest_core.config import Config, load, validate
from rest_core.errors import UserError

Command = TypeVar("Command", bound=Callable[..., Any])

FILE = click.Path(path_type=Path, dir_okay=False)


def with_options(command: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> Any:
    """The command with options, listed in its help in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def configured(command: Command) -> Command:
    """Give a command `--profile` and `--set`; it passes both to `configuration`."""
    options = (
        click.option(
            "--profile",
            default="quickstart",
            show_default=True,
            metavar="NAME|FILE",
            help="A profile's name, or a YAML file of the same shape.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="A.B=VALUE",
            help="Replace one value of the profile; the value is read as YAML. May be given again.",
        ),
    )
    return with_options(command, options)


data_option = click.option(
    "--data",
    metavar="PATH",
    help="Train on this instead: a file, folder, glob, hub id or s3:// URI; its format is recognised.",
)
api_bank_option = click.option(
    "--api-bank", metavar="PATH", help="ToolRL's processed API-Bank files: a folder or an s3:// URI."
)

resume_option = click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Resume an interrupted or failed run in its folder; --set applies to what is not done yet.",
)


def refuse_beside_resume(*names: str) -> None:
    """Refuse options that decide what a resumed run has decided already.

    Raises:
        UserError: one of these parameters of the command is given.
    """
    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(str(option.name)) == click.core.ParameterSource.COMMANDLINE
        if option.name in names and given:
            raise UserError(f"{option.opts[0]}: a resumed run keeps its own; leave it out beside --resume")


def configuration(
    profile: str, overrides: tuple[str, ...], *, data: str | None = None, api_bank: str | None = None
) -> Config:
    """The profile with `--set`, `--data` and `--api-bank` applied."""
    config = load(profile, overrides)
    if data is not None:
        source = validate(type(config.data.sources[0]), {"location": _absolute(data)}, where="--data")
        config = config.model_copy(update={"data": config.data.model_copy(update={"sources": (source,)})})
    if api_bank is not None:
        given = {**config.api_bank.model_dump(), "location": _absolute(api_bank), "enabled": True}
        section = validate(type(config.api_bank), given, where="--api-bank")
        config = config.model_copy(update={"api_bank": section})
    return config


def local_path(location: str) -> Path | None:
    """What exists here under `location`; None where nothing does, or it is no path at all."""
    try:
        path = Path(location).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, of a user whom nobody knows, with a null character
        return None


def _absolute(location: str) -> str:
    """A path that exists here, from the root, so that its meaning does not hang on a working folder."""
    path = local_path(location)
    return str(path.resolve()) if path else location
