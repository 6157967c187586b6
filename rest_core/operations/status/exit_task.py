"""The end of a run on a cluster: find out how it ended, report it, and close what it left open."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rest_core.config import LaunchConfig, StorageConfig, TrackingConfig
from rest_core.credentials import redact
from rest_core.operations import handoff, pods
from rest_core.operations.pods import PodEnd
from rest_core.operations.status import mlflow_runs
from rest_core.operations.status.announce import announce
from rest_core.operations.status.final import FinalStatus, Links, Verdict
from rest_core.operations.status.mlflow_runs import PipelineEnd, StageEnd
from rest_core.operations.status.outcome import FailedStage, Outcome, markdown, noted
from rest_core.operations.status.reproduce import commands
from rest_core.operations.tracking import store
from rest_core.s3 import short_waits

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

LOG_LINES = 30


# A run ends once: a busy server gets more time than where somebody waits for the answer.
@store.short_waits(60)
@short_waits()
def conclude(
    tracking: TrackingConfig,
    links: Links,
    final: FinalStatus,
    *,
    storage: StorageConfig,
    launch: LaunchConfig,
    pipeline_run: str,
    page: Path,
) -> Outcome:
    """Report on a run whose stages have all ended, end its MLflow runs that are still open, remove its leftovers.

    Whatever fails on the way, an MLflow server or a Kubernetes API that does not answer included, makes the report
    shorter, and is said in it.

    Args:
        tracking: where MLflow is.
        links: where KFP's pages are.
        final: what KFP says of the whole.
        storage: where the run's scratch space is.
        launch: whether the run had TrainJobs.
        pipeline_run: the run's key in MLflow.
        page: the file that the report is written to.
    """
    notes: list[str] = []
    ends: dict[str, PodEnd] = {}
    client: MlflowClient | None = None
    pipeline: PipelineEnd | None = None
    with noted(notes, "Pods and their logs could not be looked at"):
        if (run_id := pods.run_id()) is not None:
            ends = pods.ends(*pods.connect(), run_id, lines=LOG_LINES)
    with noted(notes, "MLflow could not be asked"):
        connected = store.connect(tracking)
        pipeline = mlflow_runs.read(connected, tracking, pipeline_run)
        client = connected
        if pipeline is None:
            notes.append(f"MLflow has no run {pipeline_run!r}: no stage got as far as that")
    outcome = _outcome(links, final, pipeline_run, client, pipeline, ends)
    page.write_text(markdown(outcome, notes), encoding="utf-8")  # whatever happens after this, the report is there
    remove_leftovers(storage, launch, pipeline_run, succeeded=outcome.succeeded, notes=notes)
    page.write_text(markdown(outcome, notes), encoding="utf-8")
    if client is not None and pipeline is not None:
        with noted(notes, "The run could not be closed in MLflow"):
            mlflow_runs.close(client, pipeline, outcome.verdict, outcome.line, page)
    with noted(notes, "The webhook was not told"):
        announce(outcome)
    page.write_text(markdown(outcome, notes), encoding="utf-8")
    log.info("%s\n%s", outcome.line, page.read_text(encoding="utf-8"))
    return outcome


def _outcome(
    links: Links,
    final: FinalStatus,
    pipeline_run: str,
    client: MlflowClient | None,
    pipeline: PipelineEnd | None,
    ends: Mapping[str, PodEnd],
) -> Outcome:
    stages, uri = (pipeline.stages, pipeline.tracking_uri) if pipeline else ((), "")
    failed = [one for one in stages if one.status != "FINISHED"]
    verdict = final.verdict or _guess(client, pipeline, failed, ends)
    failures: list[FailedStage] = []
    if verdict != "succeeded":
        # Which pod was of which trial, its labels do not say.
        failures = [_failed(one, None if one.trial else ends.get(one.stage), client, uri) for one in failed]
        # A pod that never came to run its stage (image, Secret, volume) is known to Kubernetes alone.
        recorded = {one.stage for one in stages}
        failures += [
            FailedStage(end.stage, _pod_end(end), tuple(map(redact, end.log)))
            for stage, end in ends.items()
            if end.failed and stage not in recorded
        ]
    message = redact(final.error_message) if final.error_message else None
    if verdict == "unknown":
        message = "KFP does not say how the run ended, and MLflow could not be asked; look at the run in KFP"
    if not failures and not message and verdict == "failed":
        message = (
            "No stage has recorded an error: a pod may never have started (image, Secret, volume, quota). Look with: "
            f"kubectl get pods -l {pods.RUN_ID_LABEL}={pods.run_id()}"
        )
    addresses = [("KFP", links.kfp_run(pods.run_id())), ("MLflow", pipeline.link if pipeline else None)]
    return Outcome(
        verdict=verdict,
        pipeline_run=pipeline_run,
        failures=tuple(failures),
        message=message,
        stages=stages,
        links=tuple((name, address) for name, address in addresses if address),
    )


def _guess(
    client: MlflowClient | None, pipeline: PipelineEnd | None, failed: list[StageEnd], ends: Mapping[str, PodEnd]
) -> Verdict:
    """Where KFP does not say: the last stage closes the parent run when all went well."""
    if client is None:
        return "failed" if any(end.failed for end in ends.values()) else "unknown"
    return "succeeded" if pipeline is not None and pipeline.status == "FINISHED" and not failed else "failed"


def _failed(stage: StageEnd, end: PodEnd | None, client: MlflowClient | None, uri: str) -> FailedStage:
    why = [stage.error] if stage.error else []
    if end is not None and end.failed:
        why.append(_pod_end(end))
    if not why:
        why.append("it ended without an error: killed (out of memory, lost node, time-out) or stopped")
    lines = list(end.log) if end else []
    if not lines and client is not None:
        with noted(lines, "The traceback cannot be read"):
            lines += mlflow_runs.traceback_of(client, stage.run_id, lines=LOG_LINES)
    reproduce = commands(stage, uri)
    return FailedStage(stage.name, redact("; ".join(why)), tuple(map(redact, lines)), tuple(reproduce))


def _pod_end(end: PodEnd) -> str:
    exit_code = None if end.exit_code is None else f"exit code {end.exit_code}"
    ended = ", ".join(part for part in (end.reason, exit_code) if part)
    waited = f" before its container had begun: it waited for {end.waited_for}" if end.waited_for else ""
    return f"its pod {end.name} ended{f' ({ended})' if ended else ''}{waited}"


def remove_leftovers(
    storage: StorageConfig, launch: LaunchConfig, pipeline_run: str, *, succeeded: bool, notes: list[str]
) -> None:
    """Delete what a run that has ended has left, and note what was removed, or could not be.

    The scratch space of a run that has not succeeded stays: a retry resumes from it.
    """
    if launch.train_job is not None:
        with noted(notes, "Leftovers could not be removed"):
            deleted, problems = pods.delete_train_jobs(pipeline_run, launch.train_job.namespace)
            notes += [f"The TrainJob {name} was left and has been deleted" for name in deleted]
            notes += [f"A leftover could not be removed: {problem}" for problem in problems]
    if storage.location is not None and succeeded:
        with noted(notes, "Leftovers could not be removed"):
            handoff.remove_scratch(storage.location, pipeline_run)
