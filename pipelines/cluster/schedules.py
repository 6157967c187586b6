"""Schedules (KFP: recurring runs): KFP itself sends at set times what `rest submit` would send."""

from __future__ import annotations

import re
from typing import Any

import kfp_server_api

from pipelines.cluster.client import Cluster, named
from pipelines.cluster.runs import find_named
from pipelines.cluster.submit import add_ids, create_once, find_created
from rest_core.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SHORTEST_SECONDS = 60


def request(
    run: kfp_server_api.V2beta1Run,
    *,
    cron: str | None,
    every: str | None,
    start: str | None,
    end: str | None,
    max_concurrency: int,
    catch_up: bool,
    disabled: bool,
) -> kfp_server_api.V2beta1RecurringRun:
    """The request that creates a schedule of `run`, with its name.

    Args:
        run: the request that creates the run (`request.run_request`).
        cron: six fields, seconds first, as KFP's scheduler reads them; five, as crontab has them, start at second 0.
        every: a number with s, m, h or d, instead of `cron`.
        start, end: RFC 3339 times between which runs start; KFP checks them.
        max_concurrency: runs at the same time.
        catch_up: make up for runs that were missed while the schedule was disabled.
        disabled: create it without starting it.

    Raises:
        UserError: neither or both of `cron` and `every` are given, or one cannot be read.
    """
    if (cron is None) == (every is None):
        raise UserError("a schedule needs --cron or --every, and not both")
    times = {"start_time": start, "end_time": end}
    if cron is not None:
        schedule = kfp_server_api.V2beta1CronSchedule(cron=_six_fields(cron), **times)
        trigger = kfp_server_api.V2beta1Trigger(cron_schedule=schedule)
    else:
        interval = kfp_server_api.V2beta1PeriodicSchedule(interval_second=_seconds(every or ""), **times)
        trigger = kfp_server_api.V2beta1Trigger(periodic_schedule=interval)
    mode = kfp_server_api.RecurringRunMode
    fields = ("display_name", "description", "pipeline_spec", "runtime_config", "service_account", "plugins_input")
    return kfp_server_api.V2beta1RecurringRun(
        trigger=trigger,
        mode=mode.DISABLE if disabled else mode.ENABLE,
        max_concurrency=str(max_concurrency),
        no_catchup=not catch_up,
        **{field: getattr(run, field) for field in fields},
    )


def _six_fields(cron: str) -> str:
    fields = cron.split()
    if len(fields) not in (5, 6):
        raise UserError(f"--cron {cron!r}: write minute hour day month weekday, if need be after the second")
    return " ".join(["0", *fields][-6:])


def _seconds(every: str) -> str:
    match = re.fullmatch(r"(\d+)([smhd])", every)
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if seconds < _SHORTEST_SECONDS:
        raise UserError(f"--every {every!r}: write a number with m, h or d, of at least {_SHORTEST_SECONDS} s: 12h")
    return str(seconds)


def create(
    cluster: Cluster, schedule: kfp_server_api.V2beta1RecurringRun, *, experiment: str, upload: bool
) -> kfp_server_api.V2beta1RecurringRun:
    """Create the schedule; experiment and pipeline version are created as for `submit.submit`."""
    add_ids(cluster, schedule, experiment=experiment, upload=upload)
    lookup = {"experiment_id": schedule.experiment_id, "filter": named(schedule.display_name), "page_size": 50}
    return create_once(
        lambda: cluster.recurring_runs.recurring_run_service_create_recurring_run(recurring_run=schedule),
        lambda: find_created(schedule, cluster.list_recurring_runs(**lookup).recurring_runs),
    )


def list_all(cluster: Cluster, **options: Any) -> list[kfp_server_api.V2beta1RecurringRun]:
    """At most 100 schedules, the newest first."""
    options |= {"namespace": cluster.api_namespace, "page_size": 100, "sort_by": "created_at desc"}
    return cluster.list_recurring_runs(**options).recurring_runs or []


def find(cluster: Cluster, name: str) -> kfp_server_api.V2beta1RecurringRun:
    """The schedule with the id, or else the name, `name`; UserError where there is none, or more than one."""
    return find_named("schedule", name, cluster.get_recurring_run, lambda **options: list_all(cluster, **options))
