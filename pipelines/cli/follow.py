"""Waiting for a run on a cluster, and what is said and done when it has ended."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from rest_core.errors import EXIT_INTERRUPTED, Preempted, UserError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run
    from rich.console import Console

    from pipelines.cluster.client import Cluster

_PIPE_WIDTH = 200  # where no terminal is, lines stay whole for other programs


def wait_for(cluster: Cluster, run_id: str, *, retried: bool = False) -> None:
    """Show the run until it has ended; the process exits with 1 unless it succeeded."""
    from pipelines.cluster import runs
    from pipelines.cluster.follow import follow

    try:
        run = follow(cluster, run_id, console())
    except KeyboardInterrupt:
        raise Preempted(
            f"the run continues: `rest status {run_id} --wait` follows it, `rest stop {run_id}` stops it",
            exit_code=EXIT_INTERRUPTED,
        ) from None
    click.echo(f"{run.display_name}: {runs.state_text(run.state)}  {cluster.link(run_id)}")
    _report_retried(cluster, run, retried)
    if run.state == "SUCCEEDED":
        return
    for stage in runs.stages(run):
        if "FAILED" in stage.states:
            reason = f": {stage.error}" if stage.error else ""
            click.echo(f"stage {stage.name} failed{reason}; see `rest logs {run_id} {stage.name}`", err=True)
    sys.exit(1)


def _report_retried(cluster: Cluster, run: V2beta1Run, retried: bool) -> None:
    """Report the end of a run that has ended before: its report-status has, and is not run again."""
    from pipelines.cluster.conclude import conclude, was_retried

    if not (retried or was_retried(run)):
        return
    try:
        click.echo(conclude(run, ui=cluster.ui))
    except UserError as problem:
        click.echo(f"the run's end is not reported in MLflow: {problem}", err=True)
        click.echo(_how_to_report(run), err=True)


def hint_at_report(run: V2beta1Run) -> None:
    """Say of a run that was retried how its end is reported."""
    from pipelines.cluster.conclude import was_retried

    if was_retried(run):
        click.echo(_how_to_report(run), err=True)


def _how_to_report(run: V2beta1Run) -> str:
    command = f"MLFLOW_TRACKING_URI=… rest status {run.run_id} --report"
    return f"report-status ran before the retry, and KFP does not run it again: `{command}` does its work"


def console() -> Console:
    """Where tables are printed."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
