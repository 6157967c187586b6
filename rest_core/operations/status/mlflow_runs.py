"""The MLflow runs of a pipeline run: how its stages ended, and closing what nobody has closed."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rest_core.config import TrackingConfig
from rest_core.operations.status.final import Verdict
from rest_core.operations.tracking import artifacts, run_tree, store
from rest_core.operations.tracking.runs import TRACEBACK_FILE
from rest_core.operations.tracking.tags import (
    ERROR_TAG,
    INPUT_TAG,
    JOINED_TAG,
    KIND_TAG,
    PIPELINE_RUN_TAG,
    SCHEME_TAG,
    SETTINGS_TAG,
    STAGE_TAG,
    TRIAL_TAG,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

STATUS_TAG = "rest.status"  # on the parent run: the outcome in one line
_MOST = 10_000  # runs of one kind; MLflow takes no larger number
_OPEN = ("RUNNING", "SCHEDULED")
_CLOSED_AS: dict[Verdict, str] = {
    "succeeded": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
    "unknown": "KILLED",
}


@dataclass(frozen=True)
class StageEnd:
    """The last attempt of a stage, as MLflow has it."""

    stage: str
    trial: str | None  # of an ablation, which has stages of one name once a trial
    run_id: str
    status: str  # as MLflow names it: FINISHED, FAILED, KILLED; RUNNING where the pod was killed
    error: str | None
    skipped: str | None
    seconds: float
    inputs: dict[str, str]  # by name: where each was read from
    scheme: str | None  # of a trial: its scheme's name, and the settings it replaces (`Trial.text`)
    parameters: dict[str, str]  # the configuration, `cfg/<section>/<name>`
    link: str

    @property
    def name(self) -> str:
        """The stage, with its trial."""
        return self.stage if self.trial is None else f"{self.stage} · {self.trial}"

    @property
    def is_open(self) -> bool:
        return self.status in _OPEN


@dataclass(frozen=True)
class PipelineEnd:
    """A pipeline's parent run."""

    tracking_uri: str
    run_id: str
    status: str
    joined: bool  # somebody else (KFP's plugin) made it and will end it
    link: str
    stages: tuple[StageEnd, ...]  # in the order in which they started
    open_trials: tuple[str, ...]  # ids of trials' runs, between the parent and the stages, that nobody has closed


def read(client: MlflowClient, tracking: TrackingConfig, pipeline_run: str) -> PipelineEnd | None:
    """What MLflow has of a pipeline run; None where it has nothing. MLflow's own exceptions pass."""
    uri, experiment = store.resolve_uri(tracking), _experiment(client, tracking)
    parent = None if experiment is None else run_tree.find_pipeline_run(client, experiment, pipeline_run)
    if experiment is None or parent is None:
        return None

    def of_kind(kind: str) -> list[Run]:
        wanted = f"tags.`{PIPELINE_RUN_TAG}` = '{pipeline_run}' AND tags.`{KIND_TAG}` = '{kind}'"
        return list(client.search_runs([experiment], wanted, max_results=_MOST, order_by=["attributes.start_time ASC"]))

    last = {(run.data.tags[STAGE_TAG], run.data.tags.get(TRIAL_TAG)): run for run in of_kind("stage")}
    return PipelineEnd(
        tracking_uri=uri,
        run_id=parent.info.run_id,
        status=parent.info.status,
        joined=JOINED_TAG in parent.data.tags,
        link=store.where_to_look(uri, experiment, parent.info.run_id),
        stages=tuple(_stage_end(stage, trial, run, uri, experiment) for (stage, trial), run in last.items()),
        open_trials=tuple(run.info.run_id for run in of_kind("trial") if run.info.status in _OPEN),
    )


def traceback_of(client: MlflowClient, run_id: str, *, lines: int) -> tuple[str, ...]:
    """The last lines of the traceback that a stage's defect has left; none where it left none."""
    if not any(found.path == TRACEBACK_FILE for found in client.list_artifacts(run_id)):
        return ()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(client.download_artifacts(run_id, TRACEBACK_FILE, folder))
        text = file.read_text(encoding="utf-8", errors="replace")
    return tuple(text.rstrip().splitlines()[-lines:])


def close(client: MlflowClient, pipeline: PipelineEnd, verdict: Verdict, line: str, page: Path) -> None:
    """Keep the report with the parent run, and end the runs that are still open.

    A stage's run that is open was left by a pod that was killed, or by one that could not reach MLflow any more; the
    parent is open where the run has ended between two stages.
    """
    for stage in pipeline.stages:
        if stage.is_open:
            if verdict != "succeeded":
                client.set_tag(stage.run_id, ERROR_TAG, line[: artifacts.MAX_TAG_VALUE])
            client.set_terminated(stage.run_id, "FINISHED" if verdict == "succeeded" else "KILLED")
    for trial in pipeline.open_trials:
        client.set_terminated(trial, _CLOSED_AS[verdict])
    client.set_tag(pipeline.run_id, STATUS_TAG, line[: artifacts.MAX_TAG_VALUE])
    client.log_artifact(pipeline.run_id, str(page), "status")
    # A run that was retried has an end already, which may have become another.
    changed = pipeline.status in _OPEN or (verdict != "unknown" and pipeline.status != _CLOSED_AS[verdict])
    if not pipeline.joined and changed:
        client.set_terminated(pipeline.run_id, _CLOSED_AS[verdict])


def _experiment(client: MlflowClient, tracking: TrackingConfig) -> str | None:
    """The experiment's id: of the run that KFP's plugin has made for this pod, else by its name."""
    if joined := os.environ.get("MLFLOW_RUN_ID"):
        return str(client.get_run(joined).info.experiment_id)
    found = client.get_experiment_by_name(tracking.experiment)
    return None if found is None else str(found.experiment_id)


def _stage_end(stage: str, trial: str | None, run: Run, uri: str, experiment: str) -> StageEnd:
    tags: dict[str, str] = run.data.tags
    ended = run.info.end_time or int(time.time() * 1000)
    return StageEnd(
        stage=stage,
        trial=trial,
        run_id=run.info.run_id,
        status=run.info.status,
        error=tags.get(ERROR_TAG),
        skipped=tags.get("rest.skipped"),
        seconds=(ended - run.info.start_time) / 1000,
        inputs={
            name.removeprefix(INPUT_TAG): where for name, where in sorted(tags.items()) if name.startswith(INPUT_TAG)
        },
        scheme="=".join(tags[tag] for tag in (SCHEME_TAG, SETTINGS_TAG) if tag in tags) or None,
        parameters=run.data.params,
        link=store.where_to_look(uri, experiment, run.info.run_id),
    )
