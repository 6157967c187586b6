"""`rest promote | ui | sync`: what MLflow holds after a run."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click

from pipelines.cli.options import configuration, configured
from rest_core.errors import UserError


@click.command()
@configured
@click.option("--version", metavar="N|ALIAS", help="Version to promote; default: the challenger.")
@click.option(
    "--metric", metavar="NAME", help="Figure that decides, higher is better; default: the profile's registry.metric."
)
@click.option("--reason", metavar="TEXT", help="Kept in the model's history.")
@click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
@click.option("--force", is_flag=True, help="Promote against the rule; the history says so.")
@click.option("--history", "show_history", is_flag=True, help="List the promotions so far instead.")
def promote(
    profile: str,
    overrides: tuple[str, ...],
    version: str | None,
    metric: str | None,
    reason: str | None,
    dry_run: bool,
    force: bool,
    show_history: bool,
) -> None:
    """Make a registered version the champion.

    Refused where the champion is better, unless forced.

    \b
    Examples:
      rest promote --dry-run
      rest promote --reason "better on live categories"
      rest promote --version 3 --force        back to an older version
      rest promote --history
    """
    config = configuration(profile, overrides)
    from rest_core import logs
    from rest_core.operations.tracking import registry, store

    logs.configure(sys.stderr, level=logging.WARNING, libraries=("mlflow",))
    client = store.connect(config.tracking)
    if show_history:
        for promotion in registry.history(client, config.registry.name):
            click.echo(
                f"{promotion.at}  {promotion.describe()}" + (f"  ({promotion.reason})" if promotion.reason else "")
            )
        return
    metric = metric or config.registry.metric
    promotion = registry.promote(
        client,
        config.registry.name,
        version=version,
        metric=metric,
        force=force,
        dry_run=dry_run,
        reason=reason,
    )
    click.echo(promotion.describe())
    promoted = registry.get_version(client, config.registry.name, promotion.version)
    for missing in registry.missing_links(client, promoted, metric):
        click.echo(f"lineage: {missing}", err=True)


@click.command()
@configured
@click.option(
    "--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 lets other machines in."
)
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True, help="TCP port.")
def ui(profile: str, overrides: tuple[str, ...], host: str, port: int) -> None:
    """Show runs, figures and models in MLflow's own pages.

    \b
    Examples:
      rest ui
      rest ui --port 5001
    """
    config = configuration(profile, overrides)
    from rest_core.operations.tracking import store
    from rest_core.operations.tracking.ui import serve

    sys.exit(serve(store.resolve_uri(config.tracking), host=host, port=port))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def sync(folder: Path) -> None:
    """Send records that MLflow has missed.

    They are kept in the run's folder while a tracking server is away.

    FOLDER is the folder that the run's message named, or any folder above it.

    \b
    Examples:
      rest sync runs
    """
    from rest_core import logs
    from rest_core.operations.tracking.delivery import deliver

    logs.configure(sys.stderr, level=logging.WARNING, libraries=("mlflow",))
    delivery = deliver(folder)
    click.echo(f"{delivery.sent} records sent, {delivery.left} wait, {delivery.refused} refused")
    if delivery.problem:
        raise UserError(f"{folder}: {delivery.left} records wait: {delivery.problem}")


COMMANDS = (promote, ui, sync)
