"""The run in MLflow of a whole local run: opened before its first stage, and ended where no stage has ended it."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.summary import RunStatus
from rest_core.config import TrackingConfig
from rest_core.operations.tracking import journal, store
from rest_core.operations.tracking.delivery import deliver
from rest_core.operations.tracking.runs import OpenPipeline, reopen_pipeline

SPOOL = "run.tracking"
"""Beside a local run's artifacts: what `rest sync` ends the run with where its process was killed."""


def begin(tracking: TrackingConfig, artifacts: Path, run: str, *, resumed: bool) -> OpenPipeline:
    """Open a run.

    Where it is resumed, what earlier attempts have left is sent first: a stage that was killed is ended by that, also
    one that does not start again.

    Args:
        tracking: where MLflow is.
        artifacts: the pipeline's root, with the records of its stages.
        run: the pipeline run's name in MLflow.
        resumed: whether it has run before.
    """
    spool = artifacts.with_name(SPOOL)
    if resumed:
        shutil.rmtree(spool, ignore_errors=True)  # how the attempt before has ended does not count any more
        _deliver(tracking, artifacts)
        reopen_pipeline(tracking, pipeline_run=run, spool=spool)
    return OpenPipeline(tracking, pipeline_run=run, spool=spool)


def end(parent: OpenPipeline, tracking: TrackingConfig, artifacts: Path, status: RunStatus | None) -> None:
    """End a run that no stage has ended: it was left between two of them, or one was killed whole.

    Args:
        parent: what `begin` has returned.
        tracking, artifacts: as there.
        status: how it has ended; None where MLflow has not heard of it: no stage has begun, in no attempt.
    """
    if status in (None, "succeeded"):
        parent.discard()
        shutil.rmtree(artifacts.with_name(SPOOL), ignore_errors=True)
        return
    _deliver(tracking, artifacts)  # ends the run of a stage that was killed
    parent.end("FAILED" if status == "failed" else "KILLED")


def _deliver(tracking: TrackingConfig, artifacts: Path) -> None:
    if journal.find(artifacts):
        deliver(artifacts, store.resolve_uri(tracking))
