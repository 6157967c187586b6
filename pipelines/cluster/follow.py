"""A run's stages until it ends: a table on a terminal, else a line for each change."""

from __future__ import annotations

import time
from contextlib import nullcontext
from datetime import datetime

import kfp_server_api
from rich.console import Console
from rich.live import Live

from pipelines.cluster.client import Cluster
from pipelines.cluster.errors import ApiError
from pipelines.cluster.runs import ENDED, StageProgress, stages, state_text
from pipelines.cluster.tables import stage_table

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # a training lasts for days: an API that is away for minutes ends no wait


def follow(cluster: Cluster, run_id: str, console: Console) -> kfp_server_api.V2beta1Run:
    """Show the run until it has ended; returns its last state.

    Raises:
        ApiError: a request was refused, or the API has been away for `PATIENCE_SECONDS`.
    """
    shown: dict[str, str] = {}
    away_since: float | None = None
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            try:
                run = cluster.get_run(run_id)
            except ApiError as error:
                now = time.monotonic()
                if not error.temporary or now - (away_since or now) > PATIENCE_SECONDS:
                    raise
                if away_since is None:
                    away_since = now
                    _print(console, f"{error}; still waiting")
            else:
                away_since = None
                if live is not None:
                    live.update(stage_table(stages(run)), refresh=True)
                else:
                    _print_changes(console, stages(run), shown)
                if run.state in ENDED:
                    return run
            time.sleep(POLL_SECONDS)


def _print_changes(console: Console, current: list[StageProgress], shown: dict[str, str]) -> None:
    for stage in current:
        state = state_text(stage.state)
        if stage.states and shown.get(stage.name) != state:
            shown[stage.name] = state
            _print(console, f"{stage.name}  {state}")


def _print(console: Console, text: str) -> None:
    console.print(f"{datetime.now():%H:%M:%S}  {text}", markup=False, soft_wrap=True)
