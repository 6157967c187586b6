"""`rest promote | history | lineage | ui | sync`: what MLflow holds after a run."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from pipelines.cli.options import configuration, configured
from rest_core.errors import UserError, one_line

_WIDTH = 140  # of the table where it goes to a file or a pipe


@click.command()
@configured
@click.option("--version", metavar="N|ALIAS", help="Version to promote; default: the challenger.")
@click.option("--reason", metavar="TEXT", help="Kept in the model's history.")
@click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
@click.option("--force", is_flag=True, help="Promote although the gate refuses; the history says so.")
@click.option("--rollback", is_flag=True, help="Go back to the champion before this one.")
def promote(
    profile: str,
    overrides: tuple[str, ...],
    version: str | None,
    reason: str | None,
    dry_run: bool,
    force: bool,
    rollback: bool,
) -> None:
    """Make a registered version the champion.

    The section `gate` of the configuration decides: the version must be clearly better than the champion on the same
    questions, and better than its base model.

    \b
    Examples:
      rest promote --dry-run
      rest promote --reason "better on live categories"
      rest promote --set gate.margin=0.02     not clearly worse by more than 2 points is enough
      rest promote --rollback
    """
    if rollback and (version is not None or force):
        raise UserError("--rollback goes with neither --version nor --force; leave them out")
    config = configuration(profile, overrides)
    from rich.console import Console

    from rest_core import logs
    from rest_core.operations.tracking import answers, promotion, store

    logs.configure(sys.stderr, level=logging.WARNING, libraries=("mlflow",))
    client = store.connect(config.tracking)
    name = config.registry.name
    with answers.away_told(client.tracking_uri):
        if rollback:
            move = promotion.roll_back(client, name, config.gate, dry_run=dry_run, reason=reason)
        else:
            console = Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _WIDTH)
            try:
                move, verdict = promotion.promote(
                    client, name, config.gate, version=version, force=force, dry_run=dry_run, reason=reason
                )
            except promotion.Refused as refusal:
                console.print(refusal.verdict.table())
                raise
            console.print(verdict.table())
    click.echo(move.describe())


@click.command()
@configured
def history(profile: str, overrides: tuple[str, ...]) -> None:
    """List the moves of a model's champion, oldest first.

    \b
    Examples:
      rest history
      rest history --set registry.name=my-model
    """
    config = configuration(profile, overrides)
    from rest_core.operations.tracking import answers, promotion, store

    client = store.connect(config.tracking)
    with answers.away_told(client.tracking_uri):
        moves = promotion.history(client, config.registry.name)
    for move in moves:
        reason = f"  ({move.reason})" if move.reason else ""
        click.echo(one_line(f"{move.at}  {move.actor}  {move.describe()}{reason}"))


@click.command()
@click.argument("version", default="champion")
@configured
def lineage(version: str, profile: str, overrides: tuple[str, ...]) -> None:
    """Follow a version back to its evaluation, training, data, code and pipeline.

    VERSION is a number or alias (default: champion). Files are looked for and hashed; a link that is missing, or is not
    what was recorded, ends the command with exit code 2.

    \b
    Examples:
      rest lineage
      rest lineage 3
    """
    config = configuration(profile, overrides)
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from rest_core.operations.tracking import answers, registry, store
    from rest_core.operations.tracking.lineage import lineage as links_of

    client = store.connect(config.tracking)
    with answers.away_told(client.tracking_uri):
        links = links_of(client, registry.get_version(client, config.registry.name, version))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_header=False)
    for link in links:
        mark = Text("✗", "red") if link.problem else Text("✓", "green")
        table.add_row(mark, link.name, Text(one_line(link.found + (f": {link.problem}" if link.problem else ""))))
    Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _WIDTH).print(table)
    if missing := [link.name for link in links if link.problem]:
        raise UserError(f"{config.registry.name} version {version}: no whole lineage: {', '.join(missing)}; see above")


@click.command()
@configured
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 lets other machines in."
)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="TCP port.")
@click.option("--browser/--no-browser", default=None, help="Open the page in a browser; default: on a desktop.")
def ui(profile: str, overrides: tuple[str, ...], host: str, port: int, browser: bool | None) -> None:
    """Show runs, figures and models in MLflow's own pages, the table of pipeline runs first.

    \b
    Examples:
      rest ui
      rest ui --port 5001
    """
    config = configuration(profile, overrides)
    from rest_core.operations.tracking import store
    from rest_core.operations.tracking.ui import serve

    desktop = sys.stdout.isatty() and ("DISPLAY" in os.environ or sys.platform == "darwin")
    uri, experiment = store.resolve_uri(config.tracking), config.tracking.experiment
    serve(uri, host=host, port=port, experiment=experiment, browser=desktop if browser is None else browser)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@configured
@click.option(
    "--moved", is_flag=True, help="Send records of another address, too: MLflow has another one now, or here."
)
def sync(folder: Path, profile: str, overrides: tuple[str, ...], moved: bool) -> None:
    """Send records that MLflow has missed, and end runs whose process was killed.

    Records are kept in the run's folder while a tracking server is away. They go to the configured MLflow alone
    (tracking.uri, else MLFLOW_TRACKING_URI, else mlruns/ here). The exit code is 0 when it has taken all of them.

    FOLDER is the folder that the run's message named, or any folder above it.

    \b
    Examples:
      rest sync runs
      rest sync runs/latest --set tracking.uri=http://mlflow:5000
    """
    config = configuration(profile, overrides)
    from rest_core import logs
    from rest_core.operations.tracking import store
    from rest_core.operations.tracking.delivery import deliver

    logs.configure(sys.stderr, level=logging.WARNING, libraries=("mlflow",))
    delivery = deliver(folder, store.resolve_uri(config.tracking), moved=moved)
    click.echo(f"{delivery.sent} records sent, {delivery.left} wait, {delivery.refused} refused")
    if delivery.problem:
        raise UserError(f"{delivery.left} records wait: {delivery.problem}")
    if delivery.refused:
        raise UserError(f"{folder}: {delivery.refused} records were refused, now or before, and stay there")


COMMANDS = (promote, history, lineage, ui, sync)
