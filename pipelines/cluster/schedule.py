"""Recurring runs: what `rest submit` would send, sent by KFP at set times."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import kfp_server_api

from pipelines.cluster import lookup
from pipelines.cluster.connection import Cluster, named
from pipelines.cluster.errors import ApiError
from pipelines.cluster.once import change_once, send_once
from pipelines.cluster.render import Rendered
from pipelines.cluster.submit import experiment, upload_version, with_key
from rest_core.errors import UserError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
SHORTEST_SECONDS = 60
_NEWEST = "created_at desc"
_SEE = "see `rest schedule list`"


def trigger(
    *, cron: str | None, every: str | None, start: str | None = None, end: str | None = None
) -> kfp_server_api.V2beta1Trigger:
    """A trigger from `--cron` or `--every`.

    Args:
        cron: six fields, seconds first, as KFP's scheduler reads them; five, as crontab has them, start at second 0.
        every: a number with s, m, h or d.
        start, end: RFC 3339 times between which runs start.

    Raises:
        UserError: neither or both are given, or one does not read.
    """
    if (cron is None) == (every is None):
        raise UserError("a schedule needs --cron or --every, and not both")
    times = {"start_time": _time("--start", start), "end_time": _time("--end", end)}
    if cron is not None:
        fields = cron.split()
        if len(fields) not in (5, 6):
            raise UserError(
                f"--cron {cron!r}: has {len(fields)} fields; write minute hour day month weekday, with seconds before "
                "them where they matter"
            )
        schedule = kfp_server_api.V2beta1CronSchedule(cron=" ".join(["0", *fields][-6:]), **times)
        return kfp_server_api.V2beta1Trigger(cron_schedule=schedule)
    match = re.fullmatch(r"(\d+)([smhd])", every or "")
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if seconds < SHORTEST_SECONDS:
        raise UserError(f"--every {every!r}: write a number with m, h or d, of at least {SHORTEST_SECONDS} s: 12h")
    return kfp_server_api.V2beta1Trigger(
        periodic_schedule=kfp_server_api.V2beta1PeriodicSchedule(interval_second=str(seconds), **times)
    )


def _time(option: str, value: str | None) -> str | None:
    try:
        known = value is None or datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise UserError(f"{option} {value!r}: write a time with its zone, as 2026-01-31T00:00:00Z")
    return value


def body(
    rendered: Rendered,
    when: kfp_server_api.V2beta1Trigger,
    *,
    experiment_id: str | None = None,
    version: kfp_server_api.V2beta1PipelineVersion | None = None,
    max_concurrency: int = 1,
    catch_up: bool = False,
    enabled: bool = True,
) -> kfp_server_api.V2beta1RecurringRun:
    """The body of the request that creates a schedule."""
    mode = kfp_server_api.RecurringRunMode
    return kfp_server_api.V2beta1RecurringRun(
        experiment_id=experiment_id,
        display_name=rendered.run_name,
        description=rendered.description,
        runtime_config=rendered.runtime_config(),
        service_account=rendered.service_account,
        trigger=when,
        mode=mode.ENABLE if enabled else mode.DISABLE,
        max_concurrency=str(max_concurrency),
        no_catchup=not catch_up,
        **rendered.source(version),
    )


def create(
    cluster: Cluster,
    rendered: Rendered,
    when: kfp_server_api.V2beta1Trigger,
    *,
    upload: bool = False,
    **settings: Any,
) -> kfp_server_api.V2beta1RecurringRun:
    """Create a schedule of the run.

    Args:
        cluster: where.
        rendered: the run; the schedule has its name.
        when: its trigger.
        upload: upload the pipeline as a version, and run that.
        settings: max_concurrency, catch_up, enabled, as `body` has them.
    """
    experiment_id = experiment(cluster, rendered.experiment)
    version = upload_version(cluster, rendered) if upload else None
    made = body(rendered, when, experiment_id=experiment_id, version=version, **settings)
    return send_once(
        lambda: cluster.client.recurring_runs.recurring_run_service_create_recurring_run(recurring_run=made),
        lambda: with_key(
            cluster.client.list_recurring_runs(
                experiment_id=experiment_id, filter=named(made.display_name), page_size=50
            ).recurring_runs,
            rendered.key,
        ),
        what=f"schedule {made.display_name} was created",
        advice=f"{_SEE} before you create it again",
    )


def list_all(cluster: Cluster, *, count: int = 100) -> list[kfp_server_api.V2beta1RecurringRun]:
    """At most `count` schedules, the newest first."""
    return _list(cluster, page_size=count, sort_by=_NEWEST)


def find(cluster: Cluster, name: str) -> kfp_server_api.V2beta1RecurringRun:
    """The schedule with the id, or else the name, `name`."""
    return lookup.find(
        name,
        kind="schedule",
        listed_by="rest schedule list",
        get=cluster.client.get_recurring_run,
        named=lambda name: _list(cluster, filter=named(name), page_size=10, sort_by=_NEWEST),
        latest=lambda: list_all(cluster),
        id_of=lambda schedule: str(schedule.recurring_run_id),
        name_of=lambda schedule: schedule.display_name,
    )


def switch(cluster: Cluster, schedule: kfp_server_api.V2beta1RecurringRun, *, on: bool) -> None:
    """Enable or disable a schedule; runs that have started go on."""
    wanted = "ENABLED" if on else "DISABLED"
    send = cluster.client.enable_recurring_run if on else cluster.client.disable_recurring_run
    change_once(
        lambda: send(schedule.recurring_run_id),
        lambda: cluster.client.get_recurring_run(schedule.recurring_run_id).status == wanted,
        what=f"schedule {schedule.display_name} was {wanted.lower()}",
        advice=_SEE,
    )


def delete(cluster: Cluster, schedule: kfp_server_api.V2beta1RecurringRun) -> None:
    """Delete a schedule; its runs stay."""

    def gone() -> bool:
        try:
            cluster.client.get_recurring_run(schedule.recurring_run_id)
        except ApiError as error:
            if error.status == 404:
                return True
            raise
        return False

    change_once(
        lambda: cluster.client.delete_recurring_run(schedule.recurring_run_id),
        gone,
        what=f"schedule {schedule.display_name} was deleted",
        advice=_SEE,
    )


def _list(cluster: Cluster, **options: Any) -> list[kfp_server_api.V2beta1RecurringRun]:
    return cluster.client.list_recurring_runs(namespace=cluster.api_namespace, **options).recurring_runs or []
