"""A run's stages while it goes: a table on a terminal, else a line for each change."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import nullcontext
from datetime import UTC, datetime

import kfp_server_api
from rich.console import Console
from rich.live import Live

from pipelines.cluster.connection import Cluster
from pipelines.cluster.errors import ApiError
from pipelines.cluster.runs import ENDED, Stage, stages, word
from pipelines.cluster.show import stage_table

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # a training lasts for days: an API that is away for minutes ends no wait


def follow(cluster: Cluster, run_id: str, console: Console) -> kfp_server_api.V2beta1Run:
    """Show the run until it has ended; returns its last state.

    Raises:
        ApiError: a request was refused, or the API has been away for `PATIENCE_SECONDS`.
    """
    told: dict[str, str] = {}
    away_since: float | None = None
    with Live(console=console, auto_refresh=False) if console.is_terminal else nullcontext() as live:
        while True:
            try:
                run = cluster.client.get_run(run_id)
            except ApiError as error:
                now = time.monotonic()
                # The API has answered before this command waits: a page now is a proxy's, while it is away.
                lasting = not error.passing and not error.foreign
                if lasting or (away_since is not None and now - away_since > PATIENCE_SECONDS):
                    raise
                if away_since is None:
                    away_since = now
                    console.print(f"{_clock()}  {error}; still waiting", markup=False, soft_wrap=True)
            else:
                away_since = None
                seen = stages(run)
                if live is not None:
                    live.update(stage_table(seen), refresh=True)
                else:
                    _tell_changes(console, seen, told)
                if run.state in ENDED:
                    return run
            time.sleep(POLL_SECONDS)


def _tell_changes(console: Console, seen: Iterable[Stage], told: dict[str, str]) -> None:
    for stage in seen:
        state = word(stage.state)
        if stage.states and told.get(stage.name) != state:
            told[stage.name] = state
            console.print(f"{_clock()}  {stage.name}  {state}", markup=False, highlight=False)


def _clock() -> str:
    return datetime.now(UTC).astimezone().strftime("%H:%M:%S")
