"""How a run's end, and that of the runs above it, is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_core.operations.tracking import run_tree
from rest_core.operations.tracking.journal import RunIds
from rest_core.operations.tracking.records import Record
from rest_core.operations.tracking.tags import ERROR_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_OPEN = ("RUNNING", "SCHEDULED")


def end(client: MlflowClient, begin: Record, record: Record, ids: RunIds) -> None:
    """Record how a stage, or the whole pipeline run, has ended."""
    status = record["status"]
    if status == "RUNNING":  # the pipeline is resumed
        if ids.run in ids.owned:
            client.update_run(ids.run, status=status)
        return
    if ids.run == ids.pipeline:
        run = client.get_run(ids.run)
        if status == "KILLED" and run.info.status not in _OPEN:  # its last stage had ended it before
            return
        if _errors(run):
            status = "FAILED"
    if record["error"]:
        client.set_tag(ids.run, ERROR_TAG, record["error"])
    if ids.run in ids.owned:
        client.set_terminated(ids.run, status, end_time=record["time"])
    if ids.run != ids.pipeline:
        _report(client, record, ids.pipeline, begin["stage"], ids)
    if ids.root is not None:
        trial = begin["levels"][1]["name"].replace(" · ", " ")  # no key of a tag may have the dot
        _report(client, record, ids.root, f"{begin['stage']} {trial}", ids)
        _end_trial(client, record, ids)


def _report(client: MlflowClient, record: Record, parent_id: str, stage: str, ids: RunIds) -> None:
    """A parent is FAILED as long as a stage of it has failed and no later attempt of that stage has succeeded."""
    own = f"{ERROR_TAG}/{stage}"
    if record["error"]:
        client.set_tag(parent_id, own, record["error"])
        if parent_id in ids.owned:
            client.set_terminated(parent_id, "FAILED", end_time=record["time"])
        return
    errors = _errors(client.get_run(parent_id))
    if own in errors:
        client.delete_tag(parent_id, own)
        if parent_id in ids.owned and errors == {own}:
            client.update_run(parent_id, status="RUNNING")


def _end_trial(client: MlflowClient, record: Record, ids: RunIds) -> None:
    """A trial has no last stage of its own: it ends when none of its stages runs and none has failed."""
    running = f"tags.`{run_tree.PARENT_TAG}` = '{ids.pipeline}' AND attributes.status = 'RUNNING'"
    if not _errors(client.get_run(ids.pipeline)) and not client.search_runs([ids.experiment], running):
        client.set_terminated(ids.pipeline, "FINISHED", end_time=record["time"])


def _errors(run: Run) -> set[str]:
    return {tag for tag in run.data.tags if tag.startswith(f"{ERROR_TAG}/")}
