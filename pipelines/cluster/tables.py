"""Tables of runs, stages and schedules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime

import kfp_server_api
from rich import box
from rich.table import Table
from rich.text import Text

from pipelines.cluster.errors import printable
from pipelines.cluster.runs import StageProgress, moment, state_text

_COLOURS = {"FAILED": "red", "SUCCEEDED": "green", "CACHED": "green", "RUNNING": "cyan", "CANCELED": "yellow"}


def stage_table(stages: Iterable[StageProgress]) -> Table:
    table = _table("stage", "state", "time", "")
    for stage in stages:
        _add(table, stage.name, _states(stage), _duration(stage), stage.error)
    return table


def run_table(runs: Iterable[kfp_server_api.V2beta1Run]) -> Table:
    table = _table("run", "state", "created", "id")
    for run in runs:
        created = moment(run.created_at)
        shown = f"{created.astimezone():%Y-%m-%d %H:%M}" if created else ""
        _add(table, run.display_name, _state(run.state), shown, run.run_id)
    return table


def schedule_table(schedules: Iterable[kfp_server_api.V2beta1RecurringRun]) -> Table:
    table = _table("schedule", "", "when", "id")
    for schedule in schedules:
        status = str(schedule.status or "").lower()
        _add(table, schedule.display_name, status, trigger_text(schedule.trigger), schedule.recurring_run_id)
    return table


def trigger_text(trigger: kfp_server_api.V2beta1Trigger | None) -> str:
    """A schedule's trigger for people: "cron 0 0 2 * * *", "every 6 h"."""
    if trigger is not None and trigger.cron_schedule is not None:
        return f"cron {trigger.cron_schedule.cron}"
    interval = trigger and trigger.periodic_schedule and trigger.periodic_schedule.interval_second
    if not interval:
        return ""
    seconds = int(interval)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds % length == 0:
            return f"every {seconds // length} {unit}"
    return f"every {seconds} s"


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    first, *others = columns
    table.add_column(first, no_wrap=True)  # a name, to be copied as a whole
    for column in others:
        table.add_column(column, overflow="fold")
    return table


def _add(table: Table, *cells: str | Text | None) -> None:
    """A row of plain text, without markup and without control characters of whoever named a run."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell or "")) for cell in cells))


def _states(stage: StageProgress) -> Text:
    if len(stage.states) < 2:
        return _state(stage.state)
    return Text(", ").join(Text(f"{count} ") + _state(state) for state, count in Counter(stage.states).items())


def _state(state: str | None) -> Text:
    return Text(state_text(state), style=_COLOURS.get(state or "", ""))


def _duration(stage: StageProgress) -> str:
    if stage.started is None:
        return ""
    minutes, seconds = divmod(round(((stage.finished or datetime.now(UTC)) - stage.started).total_seconds()), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {seconds:02} s" if minutes else f"{seconds} s"
