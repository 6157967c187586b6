"""MLflow runs: one parent run a pipeline run, one nested run a stage.

In an ablation the stages of a trial (a weight scheme with a seed) are nested in the trial's own run, which is nested in
the pipeline's: figures and parameters of trials stand side by side, where they would replace each other on one parent.

`stage_run` opens the stage's run and records how the stage ends; `finish_pipeline` closes the parent. Neither waits
for a server: everything goes to a journal, which a thread sends.

Stages of a pipeline run are separate processes, on a cluster separate pods; they share the parent because they look
for the tag `rest.pipeline_run`. Where MLFLOW_RUN_ID is set (KFP's own MLflow plugin makes a run a task), that run is
joined and left open: whoever made it ends it.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import io
import json
import logging
import math
import os
import re
import secrets
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic_core import to_json

from rest_core import manifest
from rest_core.config import TrackingConfig
from rest_core.errors import Preempted, UserError
from rest_core.operations.tracking import journal, store
from rest_core.operations.tracking.delivery import MAX_TAG_VALUE
from rest_core.operations.tracking.journal import Journal, State, Target
from rest_core.operations.tracking.sender import Sender
from rest_core.operations.tracking.system_metrics import recorded
from rest_core.operations.tracking.tags import JOURNAL_TAG, KIND_TAG, PIPELINE_RUN_TAG, STAGE_TAG, TRIAL_TAG

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

SOURCE_VARIABLE = "REST_SOURCE"  # of a local run's stages: the command that runs them
PIPELINE_VARIABLE = "REST_PIPELINE"  # of a local run's stages: the file with the compiled pipeline
PIPELINE_FILE_TAG, PIPELINE_SHA_TAG = "rest.pipeline_file", "rest.pipeline_sha256"
_EXECUTOR = "executor_main.py"  # KFP's, in every stage
TRACEBACK_FILE = "traceback.txt"  # artifact of a run that a defect has ended
GRACE_SECONDS = 10.0  # without an answer, at the end of a stage, before what is left stays in the journal
MAX_PARAM_VALUE = 6000  # MLflow's limit
_MAX_KEY = 250  # MLflow's limit
_DIGEST_LENGTH = 36  # MLflow's limit
_ILLEGAL = re.compile(r"[^\w\-. :/]", re.ASCII)
_SOURCE_TYPES = {"s3": "s3", "http": "http", "https": "http", "hf": "hf"}


def new_pipeline_run(*what: str) -> str:
    """A name for a new pipeline run that says what runs: `quickstart · paper · 2026-11-22 13:05 · 3f2a`."""
    return " · ".join([*what, datetime.now().strftime("%Y-%m-%d %H:%M"), secrets.token_hex(2)])


@dataclass(frozen=True)
class TrialRun:
    """A trial of an ablation, as MLflow shows it."""

    name: str  # without quotes; unique in the pipeline run
    tags: Mapping[str, str]  # on the trial's run and on its stages' runs: what the UI groups and filters by


class Recorder:
    """What a stage may record. No method waits for MLflow; all raise `UserError` when the disk is full."""

    # Ends the run and its parent as FAILED, with a line that says why, where the `with` block itself cannot be left.
    fail: Callable[[str], None]

    def __init__(self, records: Journal, uri: str) -> None:
        self._journal = records
        self._uri = uri
        self._non_finite: dict[str, str] = {}

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the stage's run; None as long as the server has not answered."""
        ids = State.read(self._journal.path).ids
        return ids.run if ids else None

    def wait(self, timeout: float) -> bool:
        """Wait until all that was recorded so far has been sent; False when nothing is for `timeout` seconds."""
        before, deadline = -1, 0.0
        while left := journal.left(self._journal.path):
            if left != before:
                before, deadline = left, time.monotonic() + timeout
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)
        return True

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures of one step (of the whole stage, where `step` is None) on the stage's run.

        A run that somebody else made (KFP) may be joined by several attempts of a stage: steps that an earlier attempt
        has recorded there are not sent again.
        """
        self._metrics(values, step, "run")

    def summary(self, values: Mapping[str, float]) -> None:
        """Record the stage's main figures on its run and on the parent, where pipeline runs are compared."""
        self._metrics(values, None, "run")
        self._metrics(values, None, "pipeline")

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags on the stage's run."""
        self._journal.append("tags", to="run", values=_tag_values(values))

    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record rows as the table artifact `tables/<name>.json`, which MLflow's UI shows as a table."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[row.get(column) for column in columns] for row in _plain(rows)]
        data = [[json.dumps(cell) if isinstance(cell, (dict, list)) else cell for cell in row] for row in cells]
        content = json.dumps({"columns": columns, "data": data}, ensure_ascii=False).encode()
        self._artifact(content, f"{_file_name(name)}.json", "tables", table=True)

    def figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as `figures/<name>.png`."""
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
        self._artifact(content.getvalue(), f"{_file_name(name)}.png", "figures")

    def artifact(self, path: Path, folder: str = "", *, to: Target = "run") -> None:
        """Record a copy of a file as an artifact in `folder` of the stage's run, or of the parent."""
        if not path.is_file():
            raise UserError(f"{path}: no such file to record as an artifact")
        self._artifact(path, path.name, "/".join(_file_name(part) for part in folder.split("/") if part), to=to)

    def dataset(
        self,
        name: str,
        *,
        source: str,
        digest_sha256: str,
        rows: int,
        context: str,
        split: str | None = None,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        """Record a dataset as an input of the stage's run and of the parent.

        Args:
            name: what it is, e.g. "train".
            source: where it came from (path, hub id or URI).
            digest_sha256: hex SHA-256 of its content. MLflow takes 36 characters; the tag `data/<name>/sha256` has all.
            rows: number of records.
            context: its use: "training", "validation" or "evaluation".
            split: the part of the content that is meant: MLflow tells datasets apart by their digests, so that it
                needs one of its own.
            columns: names and MLflow's types ("string", "long", …), which MLflow shows as the schema.
        """
        source = store.redact(source)
        of_split = digest_sha256
        if split is not None:
            of_split = hashlib.sha256(f"{digest_sha256}/{split}".encode()).hexdigest()
        self._journal.append(
            "dataset",
            name=name,
            source=source,
            source_type=_SOURCE_TYPES.get(source.split("://")[0], "local"),
            digest=of_split[:_DIGEST_LENGTH],
            rows=rows,
            context=context,
            columns=dict(columns or {}),
        )
        for target in ("run", "pipeline"):
            self._journal.append("tags", to=target, values={_key(f"data/{name}/sha256"): digest_sha256})

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record configuration as `cfg/…` params of the stage's run and of the parent, and whole as config.json."""
        plain = store.redacted(_plain(values))
        params = {_key(f"cfg/{name}"): _parameter(value) for name, value in manifest.leaves(plain, "/")}
        for target in ("run", "pipeline"):
            self._journal.append("params", to=target, values=params)
        self._artifact(json.dumps(plain, indent=2, ensure_ascii=False).encode() + b"\n", "config.json")

    def _artifact(
        self, source: Path | bytes, name: str, folder: str = "", *, to: Target = "run", table: bool = False
    ) -> None:
        file = self._journal.keep(source, name)
        self._journal.append("artifact", to=to, file=file, folder=folder, table=table)

    def _metrics(self, values: Mapping[str, float], step: int | None, target: Target) -> None:
        if not values:
            return
        # Strict JSON has no NaN and no infinities: they become the strings that `float` reads.
        odd = {_key(name): str(float(value)) for name, value in values.items() if not math.isfinite(value)}
        numbers = {_key(name): float(value) for name, value in values.items()} | odd
        self._journal.append("metrics", to=target, step=step, values=numbers)
        news = {name: f"step {step}: {value}" for name, value in odd.items() if name not in self._non_finite}
        if news:
            # Stores keep NaN, but clamp infinity, and the UI's charts leave both out: say it where it is seen.
            self._non_finite |= news
            logger.warning("metrics that are no finite number: %s", ", ".join(f"{k} ({v})" for k, v in news.items()))
            self.tags({"rest.non_finite": "; ".join(f"{name} at {where}" for name, where in self._non_finite.items())})

    def _end(self, sender: Sender, status: str, error: str | None = None) -> None:
        """Write the journal's last record, and wait a bounded time until everything is sent."""
        self._journal.append("end", status=status, error=error)
        delivered = sender.finish()
        self._journal.close()
        path, uri = self._journal.path, store.redact(self._uri)
        if not delivered:
            message = "%d records could not be sent to MLflow at %s and are kept; send them with: rest sync %s"
            logger.warning(message, journal.left(path), uri, path.parent)
        if refused := State.read(path).refused:
            logger.warning("MLflow at %s has refused %d values or files; they stay in %s", uri, refused, path)


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
    `delivery.deliver(spool)` (`rest sync PATH`).

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
    run.fail = lambda error: run._end(sender, "FAILED", store.redact(error)[:MAX_TAG_VALUE])
    try:
        run.parameters(parameters)
        with recorded(run.metrics):
            yield run
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, Preempted))
        if not stopped and not isinstance(error, UserError):
            text = store.redact("".join(traceback.format_exception(error)))
            run._artifact(text.encode(), TRACEBACK_FILE)
        run._end(sender, "KILLED" if stopped else "FAILED", _one_line(error))
        raise
    run._end(sender, "FINISHED")


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
    run._end(sender, status)


def reopen_pipeline(tracking: TrackingConfig, *, pipeline_run: str, spool: Path) -> None:
    """Have the parent run of a pipeline that is resumed run again."""
    run, sender = _open(tracking, pipeline_run, spool)
    run._end(sender, "RUNNING")


def _open(
    tracking: TrackingConfig, pipeline_run: str, spool: Path, stage: str | None = None, trial: TrialRun | None = None
) -> tuple[Recorder, Sender]:
    if not pipeline_run or len(pipeline_run) > _MAX_KEY or re.search(r"['\"`\\\x00-\x1f\x7f]", pipeline_run):
        raise UserError(
            f"pipeline run {pipeline_run!r:.80}: give it a name of 1 to {_MAX_KEY} characters without quotes, "
            "backslashes and line breaks"
        )
    uri = store.resolve_uri(tracking)
    records = Journal(spool)
    records.append(
        "begin",
        uri=store.without_credentials(uri),
        experiment=tracking.experiment,
        stage=stage,
        join=os.environ.get("MLFLOW_RUN_ID"),
        levels=_levels(pipeline_run, stage, trial, records.attempt),
    )
    return Recorder(records, uri), Sender(records, uri, GRACE_SECONDS)


def _levels(pipeline_run: str, stage: str | None, trial: TrialRun | None, attempt: int) -> list[dict[str, Any]]:
    """The runs from the pipeline's to the stage's, each nested in the one before: name, tags, those that find it."""
    tags = {**_common_tags(), PIPELINE_RUN_TAG: pipeline_run}
    of_kind = (PIPELINE_RUN_TAG, KIND_TAG)
    levels: list[dict[str, Any]] = [{"name": pipeline_run, "tags": {**tags, KIND_TAG: "pipeline"}, "unique": of_kind}]
    if trial is not None:
        tags |= {TRIAL_TAG: trial.name, **_tag_values(trial.tags)}
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
    return store.redact(line)[:MAX_TAG_VALUE]


def _plain(values: Any) -> Any:
    """JSON values of a configuration or a table: models become dictionaries; NaN, paths and other objects text."""
    return json.loads(to_json(values, inf_nan_mode="strings", fallback=str))


def _parameter(value: Any) -> str:
    """A value as MLflow takes it for a parameter: text that is not too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_PARAM_VALUE else f"{text[: MAX_PARAM_VALUE - 1]}…"


def _key(name: str) -> str:
    """`name` as MLflow takes it for metrics, params and tags: other characters become underscores."""
    return _ILLEGAL.sub("_", name)[:_MAX_KEY]


def _file_name(name: str) -> str:
    """`name` as one file name: never a path, never hidden."""
    return _ILLEGAL.sub("_", name).replace("/", "_").lstrip(". ") or "_"


def _tag_values(values: Mapping[str, str]) -> dict[str, str]:
    return {_key(name): store.redact(str(value))[:MAX_TAG_VALUE] for name, value in values.items()}
