"""The end of a run on a cluster: gather how it ended, report it, and close what it left open."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rest_core.config import LaunchConfig, StorageConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.operations import pods
from rest_core.operations.api_errors import one_line
from rest_core.operations.pods import NotAllowed, PodEnd
from rest_core.operations.status import leftovers, runs
from rest_core.operations.status.final import FinalStatus, Links, Verdict
from rest_core.operations.status.report import Failure, Outcome, markdown
from rest_core.operations.status.reproduce import commands
from rest_core.operations.status.runs import PipelineEnd, StageEnd
from rest_core.operations.tracking import delivery, store
from rest_core.storage import short_waits

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

LOG_LINES = 30


@store.short_waits()
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
        final: what KFP tells of the whole.
        storage: where the run's scratch space is.
        launch: whether the run had TrainJobs.
        pipeline_run: the run's key in MLflow.
        page: the file that the report is written to.
    """
    notes: list[str] = []
    ends = _pods(notes)
    client, pipeline = _mlflow(tracking, pipeline_run, notes)
    uri = store.resolve_uri(tracking) if pipeline is not None else ""
    outcome = _outcome(links, final, pipeline_run, client, pipeline, uri, ends, notes)
    _write(page, outcome)  # before anything is changed: whatever happens then, the report is there
    removed = leftovers.remove(storage, launch, pipeline_run, succeeded=outcome.succeeded)
    outcome = _with_notes(outcome, removed)
    _write(page, outcome)
    if client is not None and pipeline is not None:
        try:
            runs.close(client, pipeline, outcome.verdict, outcome.line, page)
        except Exception as error:  # every client library has failures of its own; the report itself is made
            outcome = _with_notes(outcome, [f"The run could not be closed in MLflow: {delivery.explain(error)}"])
            _write(page, outcome)
    log.info("%s\n%s", outcome.line, page.read_text(encoding="utf-8"))
    return outcome


def _with_notes(outcome: Outcome, notes: Sequence[str]) -> Outcome:
    return replace(outcome, notes=(*outcome.notes, *map(store.redact, notes)))


def _write(page: Path, outcome: Outcome) -> None:
    page.write_text(markdown(outcome), encoding="utf-8")


def _pods(notes: list[str]) -> dict[str, PodEnd]:
    run_id = pods.run_id()
    if run_id is None:
        return {}
    try:
        api, namespace = pods.connect()
        return pods.ends(api, namespace, run_id, lines=LOG_LINES)
    except NotAllowed as reason:
        notes.append(f"Pods and their logs could not be looked at: {reason}")
    except Exception as defect:  # the exit task's only task is the report
        log.exception("pods and their logs could not be looked at")
        notes.append(f"Pods and their logs could not be looked at: {type(defect).__name__}: {one_line(defect)}")
    return {}


def _mlflow(
    tracking: TrackingConfig, pipeline_run: str, notes: list[str]
) -> tuple[MlflowClient | None, PipelineEnd | None]:
    try:
        client = store.connect(tracking)
        found = runs.read(client, tracking, store.resolve_uri(tracking), pipeline_run)
    except UserError as problem:
        notes.append(f"MLflow could not be asked: {problem}")
        return None, None
    except Exception as error:  # every client library has failures of its own: `explain` puts them into words
        notes.append(f"MLflow could not be asked: {delivery.explain(error)}")
        return None, None
    if found is None:
        notes.append(f"MLflow has no run {pipeline_run!r}: no stage got as far as that")
    return client, found


def _outcome(
    links: Links,
    final: FinalStatus,
    pipeline_run: str,
    client: MlflowClient | None,
    pipeline: PipelineEnd | None,
    uri: str,
    ends: dict[str, PodEnd],
    notes: list[str],
) -> Outcome:
    stages = pipeline.stages if pipeline else ()
    failed = [one for one in stages if one.status != "FINISHED"]
    # A pod that never came to run its stage (image, Secret, volume) is known to Kubernetes alone.
    recorded = {one.stage for one in stages}
    never_ran = [end for stage, end in ends.items() if end.failed and stage not in recorded]
    verdict = final.verdict or _guess(client, pipeline, failed, ends)
    failures: list[Failure] = []
    if verdict != "succeeded":
        # Which pod was of which trial, its labels do not say.
        failures = [_failure(one, None if one.trial else ends.get(one.stage), client, uri) for one in failed]
        failures += [Failure(end.stage, _of_pod(end), tuple(map(store.redact, end.log))) for end in never_ran]
    message = store.redact(final.error_message) if final.error_message else None
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
        notes=tuple(map(store.redact, notes)),
    )


def _guess(
    client: MlflowClient | None, pipeline: PipelineEnd | None, failed: list[StageEnd], ends: Mapping[str, PodEnd]
) -> Verdict:
    """Where KFP does not say: the last stage closes the parent run when all went well."""
    if client is None:
        return "failed" if any(end.failed for end in ends.values()) else "unknown"
    return "succeeded" if pipeline is not None and pipeline.status == "FINISHED" and not failed else "failed"


def _failure(stage: StageEnd, end: PodEnd | None, client: MlflowClient | None, uri: str) -> Failure:
    why = [stage.error] if stage.error else []
    if end is not None and end.failed:
        why.append(_of_pod(end))
    if not why:
        why.append("it ended without a word: killed (out of memory, lost node, time-out) or stopped")
    log_lines = end.log if end else ()
    if not log_lines and client is not None:
        try:
            log_lines = runs.traceback_of(client, stage.run_id, lines=LOG_LINES)
        except Exception as error:  # the artifact store's client has failures of its own
            log_lines = (f"(the traceback cannot be had: {delivery.explain(error)})",)
    return Failure(
        stage.name, store.redact("; ".join(why)), tuple(map(store.redact, log_lines)), tuple(commands(stage, uri))
    )


def _of_pod(end: PodEnd) -> str:
    exit_code = None if end.exit_code is None else f"exit code {end.exit_code}"
    ended = ", ".join(part for part in (end.reason, exit_code) if part)
    return f"its pod {end.name} ended{f' ({ended})' if ended else ''}"
