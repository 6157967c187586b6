"""MLflow runs: one parent run a pipeline run, one nested run a stage.

In an ablation the stages of a trial (a weight scheme with a seed) are nested in the trial's own run, which is nested in
the pipeline's: figures and parameters of trials stand side by side, where they would replace each other on one parent.

`stage_run` opens the stage's run and records how the stage ends; `finish_pipeline` closes the parent. Neither waits
for a server: everything goes to a journal, which a thread sends. Who runs several stages keeps an `OpenPipeline`, so
that the parent is ended where that process is killed between two of them.

Stages of a pipeline run are separate processes, on a cluster separate pods; they share the parent because they look
for the tag `rest.pipeline_run`. Where MLFLOW_RUN_ID is set (KFP's own MLflow plugin makes a run a task), that run is
joined and left open: whoever made it ends it.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import os
import re
import secrets
import shutil
import sys
import traceback
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from rest_core import manifest
from rest_core.config import TrackingConfig
from rest_core.credentials import redact, without_credentials
from rest_core.errors import Preempted, UserError
from rest_core.operations.tracking import store
from rest_core.operations.tracking.artifacts import MAX_TAG_VALUE
from rest_core.operations.tracking.journal import Journal
from rest_core.operations.tracking.recorder import MAX_KEY, Recorder, tag_values
from rest_core.operations.tracking.sender import Sender
from rest_core.operations.tracking.system_metrics import recorded
from rest_core.operations.tracking.tags import JOURNAL_TAG, KIND_TAG, PIPELINE_RUN_TAG, STAGE_TAG, TRIAL_TAG

logger = logging.getLogger(__name__)

SOURCE_VARIABLE = "REST_SOURCE"  # of a local run's stages: the command that runs them
PIPELINE_VARIABLE = "REST_PIPELINE"  # of a local run's stages: the file with the compiled pipeline
PIPELINE_FILE_TAG, PIPELINE_SHA_TAG = "rest.pipeline_file", "rest.pipeline_sha256"
_EXECUTOR = "executor_main.py"  # KFP's, in every stage
TRACEBACK_FILE = "traceback.txt"  # artifact of a run that a defect has ended
GRACE_SECONDS = 10.0  # without an answer, at the end of a stage, before what is left stays in the journal


def new_pipeline_run(*what: str) -> str:
    """A name for a new pipeline run that says what runs: `quickstart · paper · 2026-11-22 13:05 · 3f2a`."""
    return " · ".join([*what, datetime.now().strftime("%Y-%m-%d %H:%M"), secrets.token_hex(2)])


@dataclass(frozen=True)
class TrialRun:
    """A trial of an ablation, as MLflow shows it."""

    name: str  # without quotes; unique in the pipeline run
    tags: Mapping[str, str]  # on the trial's run and on its stages' runs: what the UI groups and filters by


@contextlib.contextmanager
def stage_run(
    tracking: TrackingConfig,
    *,
    stage: str,
    pipeline_run: str,
    spool: Path,
    parameters: Mapping[str, Any],
    trial: TrialRun | None = None,
) -> Iterator[Recorder]:
    """The MLflow run of one stage, for as long as the `with` block lasts.

    An exception ends the stage's run and its parent as FAILED (the run as KILLED where the process was stopped), with
    the error's one line in the tag `rest.error`, and is raised. A server that is away stops nothing: one warning is
    logged, records are kept in `spool`, and sent when the server answers; what is left at the end is sent by
    `delivery.deliver` (`rest sync PATH`).

    Args:
        tracking: where MLflow is, and the experiment's name.
        stage: the stage's name, which becomes the run's.
        pipeline_run: what all stages of one pipeline run have in common; the parent run's name.
        spool: a folder for journals, outside of what the stage hands on. A second attempt of a stage may use the
            folder of the first: it becomes a new run, "<stage> (attempt 2)".
        parameters: the configuration that the stage runs with: sections (pydantic models) or plain values.
        trial: the trial of an ablation that the stage belongs to; its run is the parent then.

    Raises:
        UserError: the tracking URI or the name is not usable, or the spool cannot be written.
    """
    run, sender = _open(tracking, pipeline_run, spool, stage, trial)
    run.fail = lambda error: run.end(sender, "FAILED", redact(error)[:MAX_TAG_VALUE])
    try:
        run.parameters(parameters)
        with recorded(run.metrics):
            yield run
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, Preempted))
        if not stopped and not isinstance(error, UserError):
            text = redact("".join(traceback.format_exception(error)))
            run.content(text.encode(), TRACEBACK_FILE)
        run.end(sender, "KILLED" if stopped else "FAILED", _one_line(error))
        raise
    run.end(sender, "FINISHED")


def finish_pipeline(
    tracking: TrackingConfig,
    *,
    pipeline_run: str,
    spool: Path,
    description: str | None = None,
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED",
) -> None:
    """Close the parent run, with a Markdown description.

    Called by the last stage, or by who ends a run before that. A parent of which a stage has failed is FAILED whatever
    `status` is; one that somebody else made (KFP) is described, not ended.
    """
    run, sender = _open(tracking, pipeline_run, spool)
    if description is not None:
        run.tags({"mlflow.note.content": description})
    run.end(sender, status)


def reopen_pipeline(tracking: TrackingConfig, *, pipeline_run: str, spool: Path) -> None:
    """Have the parent run of a pipeline that is resumed run again."""
    run, sender = _open(tracking, pipeline_run, spool)
    run.end(sender, "RUNNING")


class OpenPipeline:
    """The parent run, as long as a process runs its stages.

    Its journal is there from the beginning and sent at the end alone: where the process is killed, `rest sync` finds
    the journal without its end, and ends the run.
    """

    def __init__(self, tracking: TrackingConfig, *, pipeline_run: str, spool: Path) -> None:
        self._uri, self._records = _begin(tracking, pipeline_run, spool)
        self._spool = spool

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """End the run. A parent of which a stage has failed is FAILED whatever `status` is."""
        Recorder(self._records, self._uri).end(Sender(self._records, self._uri, GRACE_SECONDS), status)

    def discard(self) -> None:
        """Leave the run as its stages have left it: the last one has ended it, or none has begun."""
        self._records.close()
        shutil.rmtree(self._records.path)
        with contextlib.suppress(OSError):  # another attempt's records wait there
            self._spool.rmdir()


def _open(
    tracking: TrackingConfig, pipeline_run: str, spool: Path, stage: str | None = None, trial: TrialRun | None = None
) -> tuple[Recorder, Sender]:
    uri, records = _begin(tracking, pipeline_run, spool, stage, trial)
    return Recorder(records, uri), Sender(records, uri, GRACE_SECONDS)


def _begin(
    tracking: TrackingConfig, pipeline_run: str, spool: Path, stage: str | None = None, trial: TrialRun | None = None
) -> tuple[str, Journal]:
    if not pipeline_run or len(pipeline_run) > MAX_KEY or re.search(r"['\"`\\\x00-\x1f\x7f]", pipeline_run):
        raise UserError(
            f"pipeline run {pipeline_run!r:.80}: give it a name of 1 to {MAX_KEY} characters without quotes, "
            "backslashes and line breaks"
        )
    uri = store.resolve_uri(tracking)
    records = Journal(spool)
    records.append(
        "begin",
        uri=without_credentials(uri),
        experiment=tracking.experiment,
        stage=stage,
        join=os.environ.get("MLFLOW_RUN_ID"),
        levels=_levels(pipeline_run, stage, trial, records.attempt),
    )
    return uri, records


def _levels(pipeline_run: str, stage: str | None, trial: TrialRun | None, attempt: int) -> list[dict[str, Any]]:
    """The runs from the pipeline's to the stage's, each nested in the one before: name, tags, those that find it."""
    tags = {**_common_tags(), PIPELINE_RUN_TAG: pipeline_run}
    of_kind = (PIPELINE_RUN_TAG, KIND_TAG)
    levels: list[dict[str, Any]] = [{"name": pipeline_run, "tags": {**tags, KIND_TAG: "pipeline"}, "unique": of_kind}]
    if trial is not None:
        tags |= {TRIAL_TAG: trial.name, **tag_values(trial.tags)}
        unique = (*of_kind, TRIAL_TAG)
        levels.append({"name": trial.name, "tags": {**tags, KIND_TAG: "trial"}, "unique": unique})
    if stage is not None:
        # Charts name their curves after runs: those of several trials must be told apart.
        name = f"{stage} · {trial.name}" if trial else stage
        name += f" (attempt {attempt})" if attempt > 1 else ""
        tags |= {KIND_TAG: "stage", STAGE_TAG: stage, JOURNAL_TAG: uuid.uuid4().hex}
        levels.append({"name": name, "tags": tags, "unique": (JOURNAL_TAG,)})
    return levels


def _common_tags() -> dict[str, str]:
    """Tags that MLflow's UI shows in columns of its own: who ran what, from which commit."""
    tags = {"mlflow.source.name": _source(), "mlflow.source.type": "LOCAL"}
    if commit := manifest.git_commit():
        tags["mlflow.source.git.commit"] = commit
    compiled = Path(os.environ.get(PIPELINE_VARIABLE, ""))
    if compiled.is_file():
        tags |= {PIPELINE_FILE_TAG: str(compiled), PIPELINE_SHA_TAG: manifest.sha256_file(compiled)}
    with contextlib.suppress(KeyError, OSError):  # an arbitrary UID on a cluster has no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _source() -> str:
    """The command that a person gave."""
    name = Path(sys.argv[0]).name or "python"
    if name == "rest":
        return " ".join([name, *sys.argv[1:2]])
    return os.environ.get(SOURCE_VARIABLE, "KFP") if name == _EXECUTOR else name


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    line = text if isinstance(error, (UserError, Preempted)) else f"{type(error).__name__}: {text}".rstrip(": ")
    return redact(line)[:MAX_TAG_VALUE]
