"""Runs: finding them by id or name, and their stages."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import kfp_server_api

from pipelines.cluster.client import Cluster, named
from rest_core.errors import UserError, nearest

ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
_NOT_RUN = ("SKIPPED", "OMITTED")
# The state of several iterations is the first of these that one of them has.
_PRECEDENCE = ("RUNNING", "CANCELING", "PENDING", "PAUSED", "FAILED", "CANCELED", "SUCCEEDED", "CACHED", "SKIPPED")
_ID = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_IDS = {"run": "run_id", "schedule": "recurring_run_id"}
_LAST = datetime.max.replace(tzinfo=UTC)

T = TypeVar("T", bound=Any)


@dataclass(frozen=True)
class StageProgress:
    """A task of the pipeline as a run reports it, all its iterations together.

    Attributes:
        name: of the task.
        states: KFP's state of each iteration, and "CACHED" for one whose result came from KFP's cache; empty before the
            first has begun.
        started: of the first to start.
        finished: of the last to end; None while one is running.
        error: KFP's message about the first that failed.
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
        return next((state for state in _PRECEDENCE if state in self.states), "PENDING")


def find(cluster: Cluster, name: str) -> kfp_server_api.V2beta1Run:
    """The run with the id, or else the display name, `name`; UserError where there is none, or more than one."""
    return find_named("run", name, cluster.get_run, lambda **options: latest(cluster, 50, **options))


def latest(cluster: Cluster, count: int, **options: Any) -> list[kfp_server_api.V2beta1Run]:
    """At most `count` runs, the newest first; `options` are those of `kfp.Client.list_runs`."""
    options |= {"namespace": cluster.api_namespace, "page_size": count, "sort_by": "created_at desc"}
    return cluster.list_runs(**options).runs or []


def find_named(kind: str, name: str, get: Callable[[str], T], listed: Callable[..., list[T]]) -> T:
    """`get` of the id `name`, or else of the one item that `listed` gives for it as a display name.

    Raises:
        UserError: there is none, or more than one.
    """
    if re.fullmatch(_ID, name.lower()):
        return get(name)
    ids = [getattr(item, _IDS[kind]) for item in listed(filter=named(name))]
    if len(ids) == 1:
        return get(ids[0])
    if ids:
        raise UserError(f"{len(ids)} {kind}s are named {name!r}: give the id of one, newest first: {', '.join(ids)}")
    hint = nearest(name, [item.display_name for item in listed()])
    command = "rest status" if kind == "run" else "rest schedule list"
    raise UserError(f"no {kind} is named {name!r}{hint}; `{command}` shows what there is")


def stages(run: kfp_server_api.V2beta1Run) -> list[StageProgress]:
    """The stages of a run: those that have begun in the order in which they did, then those still to come.

    KFP reports every node of Argo's workflow as a task: the root, loops and exit handlers, and of each stage "rest-rl"
    a driver "rest-rl-driver", the stage itself, and below that its "executor", whose pod runs the stage's code.
    """
    tasks = (run.run_details and run.run_details.task_details) or []
    by_hash = {_hash(task.pod_name): task for task in tasks if task.pod_name}
    attempts = functools.partial(_attempts, by_hash)
    code = [task.display_name for task in tasks if attempts(task) and not _is_executor(task)]
    known = list(_task_names(run.pipeline_spec or {})) or code
    reported: dict[str, list[Any]] = {}
    for task in sorted(tasks, key=lambda task: moment(task.start_time) or moment(task.create_time) or _LAST):
        name = task.display_name
        if task.state == "FAILED":  # a stage that fails in its driver never begins itself
            name = name.removesuffix("-driver")
        if name in known:
            reported.setdefault(name, []).append(task)
    begun = [_progress(name, of_name, attempts) for name, of_name in reported.items()]
    return begun + [StageProgress(name) for name in known if name not in reported]


def state_text(state: str | None) -> str:
    """A state of the API for people: "succeeded"."""
    return "pending" if state in (None, "RUNTIME_STATE_UNSPECIFIED") else str(state).lower()


def moment(value: datetime | None) -> datetime | None:
    """A time of the API; None where it is the year 1 or 1970, which stand for no time."""
    return None if value is None or value.year <= 1970 else value


def _progress(name: str, tasks: list[Any], attempts: Callable[[Any], list[Any]]) -> StageProgress:
    if any(task.display_name != name for task in tasks):  # failed drivers: their stages are listed too, but never began
        tasks = [task for task in tasks if task.display_name != name or attempts(task)]
    starts = [start for task in tasks if (start := moment(task.start_time))]
    ends = [end for task in tasks if (end := moment(task.end_time))]
    messages = [task.error.message for task in tasks if task.error and task.error.message]
    tried = [attempt for task in tasks for attempt in attempts(task) if attempt.state not in _NOT_RUN]
    return StageProgress(
        name,
        states=tuple(_state(task, attempts(task)) for task in tasks),
        started=min(starts, default=None),
        finished=max(ends) if len(ends) == len(tasks) else None,
        error=" ".join(messages[0].split()) if messages else None,
        pods=tuple(dict.fromkeys(attempt.pod_name for attempt in tried)),
    )


def _state(task: Any, attempts: list[Any]) -> str:
    cached = task.state == "SUCCEEDED" and attempts and all(attempt.state in _NOT_RUN for attempt in attempts)
    return "CACHED" if cached else state_text(task.state).upper()


def _attempts(by_hash: dict[str, Any], task: Any) -> list[Any]:
    """The executors of a task, or the attempts "executor(0)" … below each.

    A task names its children by their node ids (`<workflow>-<hash>`), and itself by its pod's name
    (`<workflow>-<template>-<hash>`).
    """
    children = [by_hash.get(_hash(child.pod_name or "")) for child in task.child_tasks or []]
    executors = [child for child in children if child is not None and _is_executor(child)]
    return [attempt for executor in executors for attempt in _attempts(by_hash, executor) or [executor]]


def _is_executor(task: Any) -> bool:
    return str(task.display_name).startswith("executor")


def _hash(pod_name: str) -> str:
    return pod_name.rpartition("-")[2]


def _task_names(spec: dict[str, Any]) -> Iterator[str]:
    """Names of the pipeline's tasks that run code; none if the run carries no pipeline."""
    spec = spec.get("pipeline_spec", spec)
    components = spec.get("components", {})

    def below(component: dict[str, Any]) -> Iterator[str]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            inner = components.get(task["componentRef"]["name"], {})
            if "dag" in inner:
                yield from below(inner)
            else:
                yield name

    yield from dict.fromkeys(below(spec.get("root", {})))
