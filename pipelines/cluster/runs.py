"""Runs on a cluster: find them, read their stages, retry and stop them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kfp_server_api

from pipelines.cluster import lookup
from pipelines.cluster.connection import Cluster, named
from pipelines.cluster.once import change_once
from rest_core.errors import UserError

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_STOPPING = ("CANCELING", "CANCELED")
_RETRIED_FROM = ("FAILED", "CANCELED")
_NOT_RUN = ("SKIPPED", "OMITTED")
_LAST = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Stage:
    """A task of the pipeline as a run reports it, all its iterations together.

    Attributes:
        name: of the task.
        states: KFP's state of each iteration, and "CACHED" for one whose result came from KFP's cache; empty before the
            first has begun.
        started: of the first to start.
        finished: of the last to end; None while one goes on.
        error: what KFP says about the first that failed.
        pods: names of the pods that ran the stage's code, in the order of their attempts.
    """

    name: str
    states: tuple[str, ...] = ()
    started: datetime | None = None
    finished: datetime | None = None
    error: str | None = None
    pods: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """The state of the whole: the worst that was reached, while none goes on."""
        for state in (
            "RUNNING",
            "CANCELING",
            "PENDING",
            "PAUSED",
            "FAILED",
            "CANCELED",
            "SUCCEEDED",
            "CACHED",
            "SKIPPED",
        ):
            if state in self.states:
                return state
        return "PENDING"


def find(cluster: Cluster, name: str) -> kfp_server_api.V2beta1Run:
    """The run with the id, or else the display name, `name`.

    Raises:
        UserError: there is none, or several have the name.
    """
    return lookup.find(
        name,
        kind="run",
        listed_by="rest status",
        get=cluster.client.get_run,
        named=lambda name: _list(cluster, page_size=10, filter=named(name)),
        latest=lambda: latest(cluster, 50),
        id_of=lambda run: str(run.run_id),
        name_of=lambda run: run.display_name,
    )


def latest(cluster: Cluster, count: int, *, experiment_id: str | None = None) -> list[kfp_server_api.V2beta1Run]:
    """At most `count` runs, the newest first."""
    return _list(cluster, page_size=count, experiment_id=experiment_id)


def stages(run: kfp_server_api.V2beta1Run) -> list[Stage]:
    """The stages of a run: those that have begun in the order in which they did, then those still to come.

    KFP reports every node of Argo's workflow as a task: the root, loops and exit handlers, and of each stage "rest-rl"
    a driver "rest-rl-driver", the stage itself, and below that its "executor", whose pod runs the stage's code.
    """
    tasks = [task for task in (run.run_details and run.run_details.task_details) or [] if task is not None]
    by_hash = {_hash(task.pod_name): task for task in tasks if task.pod_name}
    known = list(_task_names(run)) or [
        task.display_name
        for task in tasks
        if _executors(task, by_hash) and task.display_name and not task.display_name.startswith("executor")
    ]
    reported: dict[str, list[Any]] = {}
    for task in sorted(tasks, key=lambda task: moment(task.start_time) or moment(task.create_time) or _LAST):
        name = task.display_name or ""
        if task.state == "FAILED":  # a stage that fails in its driver never begins itself
            name = name.removesuffix("-driver")
        if name in known:
            reported.setdefault(name, []).append(task)
    begun = [_stage(name, of_name, by_hash) for name, of_name in reported.items()]
    return begun + [Stage(name) for name in known if name not in reported]


def retry(cluster: Cluster, run: kfp_server_api.V2beta1Run) -> None:
    """Start what failed of `run` again; what succeeded stays.

    Raises:
        UserError: the run has not failed.
        ApiError: refused, or it is not known whether it was carried out.
    """
    if run.state not in _RETRIED_FROM:
        raise UserError(
            f"run {run.display_name} is {word(run.state)}: only a run that failed or was stopped is retried"
        )

    # Once: a second retry would restart what the first has started.
    change_once(
        lambda: cluster.client.runs.run_service_retry_run(run_id=run.run_id),
        lambda: cluster.client.get_run(run.run_id).state not in _RETRIED_FROM,
        what=f"run {run.display_name} was started again",
        advice=_see(run),
    )


def stop(cluster: Cluster, run: kfp_server_api.V2beta1Run) -> bool:
    """Stop `run`; False where there is nothing to stop: it has ended, or is stopping already."""
    if run.state in ENDED or run.state in _STOPPING:
        return False

    # Once: KFP refuses to stop a run that it is stopping.
    change_once(
        lambda: cluster.client.terminate_run(run.run_id),
        lambda: cluster.client.get_run(run.run_id).state in (*ENDED, *_STOPPING),
        what=f"run {run.display_name} was stopped",
        advice=_see(run),
    )
    return True


def word(state: str | None) -> str:
    """A state of the API for people: "succeeded"."""
    return "pending" if state in (None, "RUNTIME_STATE_UNSPECIFIED") else str(state).lower()


def moment(value: datetime | None) -> datetime | None:
    """A time of the API, which writes UTC; None for its ways of saying that there is none (the years 1 and 1970)."""
    if value is None or value.year <= 1970:
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _see(run: kfp_server_api.V2beta1Run) -> str:
    return f"see `rest status {run.run_id}`"


def _list(cluster: Cluster, **options: Any) -> list[kfp_server_api.V2beta1Run]:
    return cluster.client.list_runs(namespace=cluster.api_namespace, sort_by="created_at desc", **options).runs or []


def _stage(name: str, tasks: list[Any], by_hash: dict[str, Any]) -> Stage:
    if any(task.display_name != name for task in tasks):  # failed drivers: their stages are there, too, but never began
        tasks = [task for task in tasks if task.display_name != name or _executors(task, by_hash)]
    ends = [end for task in tasks if (end := moment(task.end_time))]
    starts = [start for task in tasks if (start := moment(task.start_time))]
    errors = [task.error.message for task in tasks if task.error and task.error.message]
    return Stage(
        name,
        states=tuple(_state(task, by_hash) for task in tasks),
        started=min(starts, default=None),
        finished=max(ends) if ends and len(ends) == len(tasks) else None,
        error=" ".join(errors[0].split()) if errors else None,
        pods=tuple(dict.fromkeys(pod for task in tasks for pod in _pods(task, by_hash))),
    )


def _state(task: Any, by_hash: dict[str, Any]) -> str:
    executors = _executors(task, by_hash)
    if task.state == "SUCCEEDED" and executors and all(executor.state in _NOT_RUN for executor in executors):
        return "CACHED"
    return word(task.state).upper()


def _pods(task: Any, by_hash: dict[str, Any]) -> Iterator[str]:
    """Names of the pods that ran a task's code: its executor's, or those of the executor's attempts "executor(0)" …"""
    for executor in _executors(task, by_hash):
        attempts = [attempt.pod_name for attempt in _executors(executor, by_hash) if attempt.state not in _NOT_RUN]
        if attempts or executor.state not in _NOT_RUN:
            yield from attempts or [executor.pod_name]


def _executors(task: Any, by_hash: dict[str, Any]) -> list[Any]:
    """The children of a task that are executors.

    A task names its children by their node ids (`<workflow>-<hash>`), and itself by its pod's name
    (`<workflow>-<template>-<hash>`).
    """
    below = [by_hash.get(_hash(child.pod_name or "")) for child in task.child_tasks or [] if child is not None]
    return [task for task in below if task is not None and (task.display_name or "").startswith("executor")]


def _hash(pod_name: str) -> str:
    return pod_name.rpartition("-")[2]


def _task_names(run: kfp_server_api.V2beta1Run) -> Iterator[str]:
    """Names of the pipeline's tasks that run code, where the run carries its pipeline."""
    spec = _mapping(run.pipeline_spec)
    spec = _mapping(spec.get("pipeline_spec", spec))
    components = _mapping(spec.get("components"))

    def below(dag: Any, above: tuple[str, ...]) -> Iterator[str]:
        for name, task in _mapping(_mapping(dag).get("tasks")).items():
            component_name = str(_mapping(_mapping(task).get("componentRef")).get("name"))
            component = _mapping(components.get(component_name))
            if "dag" not in component:
                yield name
            elif component_name not in above:
                yield from below(component["dag"], (*above, component_name))

    yield from dict.fromkeys(below(_mapping(spec.get("root")).get("dag"), ()))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
