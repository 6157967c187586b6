"""MLflow runs: one parent run a pipeline run, one nested run a stage.

In an ablation the stages of a trial (a weight scheme with a seed) are nested in the trial's own run, which is nested in
the pipeline's: figures and parameters of trials stand side by side, where they would replace each other on one parent.

`stage_run` opens the stage's run and records how the stage ends; `finish_pipeline` closes the parent. Neither waits
for a server: everything goes through a spool (`rest_core.operations.tracking.spool`), sent by a process of its own.

Stages of a pipeline run are separate processes, on a cluster separate pods; they share the parent because they look
for the tag `rest.pipeline_run`. Where MLFLOW_RUN_ID is set (KFP's own MLflow plugin makes a run a task), that run is
joined and left open: whoever made it ends it.
"""

from __future__ import annotations

import contextlib
import getpass
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from rest_core import manifest
from rest_core.config import TrackingConfig
from rest_core.errors import Preempted, UserError
from rest_core.operations.tracking import delivery, store
from rest_core.operations.tracking.sender import Sender
from rest_core.operations.tracking.spool import Spool, State, Target, encode_number, read_records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

TRACEBACK_FILE = "traceback.txt"  # artifact of a run that a defect has ended
GRACE_SECONDS = 10.0  # without an answer, at the end of a stage, before what is left stays in the spool
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


class StageRun:
    """What a stage may record. No method waits for MLflow; all raise `UserError` when the disk is full."""

    # Ends the run and its parent as FAILED, with a line that says why, where the `with` block itself cannot be left.
    fail: Callable[[str], None]

    def __init__(self, spool: Spool, uri: str) -> None:
        self._spool = spool
        self._uri = uri
        self._non_finite: dict[str, str] = {}
        self._recorded = _recorded_in_joined_run(spool)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the stage's run; None as long as the server has not answered."""
        ids = State.read(self._spool.folder).sections.get(str(self._spool.section))
        return ids.run if ids else None

    @property
    def pipeline_run_id(self) -> str | None:
        """MLflow's id of the parent run; None as long as the server has not answered."""
        ids = State.read(self._spool.folder).sections.get(str(self._spool.section))
        return ids.pipeline if ids else None

    @property
    def link(self) -> str:
        """The page of the stage's run, or how to get there."""
        ids = State.read(self._spool.folder).sections.get(str(self._spool.section))
        return store.where_to_look(self._uri, ids.experiment, ids.run) if ids else store.where_to_look(self._uri)

    def wait(self, timeout: float) -> bool:
        """Wait until all that was recorded so far has been sent; False when that takes more than `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            state = State.read(self._spool.folder)
            if next(read_records(self._spool.folder, state.position), None) is None:
                return True
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures of one step (of the whole stage, where `step` is None) on the stage's run.

        A run that somebody else made (KFP) may be joined by several attempts of a stage: steps that an earlier attempt
        has recorded there are not recorded twice.
        """
        if step is not None:
            values = {name: value for name, value in values.items() if step > self._recorded.get(_key(name), -1)}
        self._metrics(values, step, "run")

    def summary(self, values: Mapping[str, float]) -> None:
        """Record the stage's main figures on its run and on the parent, where pipeline runs are compared."""
        self._metrics(values, None, "run")
        self._metrics(values, None, "pipeline")

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags on the stage's run."""
        self._spool.append("tags", to="run", values=_tag_values(values))

    def table(self, rows: Sequence[Mapping[str, Any]], name: str) -> None:
        """Record rows as the table artifact `tables/<name>.json`, which MLflow's UI shows as a table."""
        columns = list(dict.fromkeys(column for row in rows for column in row))
        data = [[_cell(row.get(column)) for column in columns] for row in rows]
        content = json.dumps({"columns": columns, "data": data}, ensure_ascii=False).encode()
        file = self._spool.keep_bytes(content, f"{_file_name(name)}.json")
        self._spool.append("table", to="run", file=file, folder="tables")

    def figure(self, figure: Figure, name: str) -> None:
        """Record a matplotlib figure as `figures/<name>.png`."""
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=120, bbox_inches="tight")
        file = self._spool.keep_bytes(content.getvalue(), f"{_file_name(name)}.png")
        self._spool.append("artifact", to="run", file=file, folder="figures")

    def artifact(self, path: Path, folder: str = "", *, to: Target = "run") -> None:
        """Record a copy of a file as an artifact in `folder` of the stage's run, or of the parent."""
        if not path.is_file():
            raise UserError(f"{path}: no such file to record as an artifact")
        parts = [_file_name(part) for part in folder.split("/") if part]
        self._spool.append("artifact", to=to, file=self._spool.keep(path), folder="/".join(parts))

    def dataset(self, name: str, *, source: str, digest_sha256: str, rows: int, context: str) -> None:
        """Record a dataset as an input of the stage's run and of the parent.

        Args:
            name: what it is, e.g. "train".
            source: where it came from (path, hub id or URI).
            digest_sha256: hex SHA-256 of its content. MLflow takes 36 characters; the tag `data/<name>/sha256` has all.
            rows: number of records.
            context: what it is used for: "training", "validation" or "evaluation".
        """
        source = store.redact(source)
        self._spool.append(
            "dataset",
            name=name,
            source=source,
            source_type=_SOURCE_TYPES.get(source.split("://")[0], "local"),
            digest=digest_sha256[:_DIGEST_LENGTH],
            rows=rows,
            context=context,
        )
        for target in ("run", "pipeline"):
            self._spool.append("tags", to=target, values={_key(f"data/{name}/sha256"): digest_sha256})

    def parameters(self, values: Mapping[str, Any]) -> None:
        """Record configuration as `cfg/…` params of the stage's run and of the parent, and whole as config.json."""
        plain = store.redacted(_plain(values))
        params = {_key(f"cfg/{name}"): _cut(text) for name, text in _flatten(plain)}
        for target in ("run", "pipeline"):
            self._spool.append("params", to=target, values=params)
        content = json.dumps(plain, indent=2, ensure_ascii=False).encode() + b"\n"
        self._spool.append("artifact", to="run", file=self._spool.keep_bytes(content, "config.json"), folder="")

    def _metrics(self, values: Mapping[str, float], step: int | None, target: Target) -> None:
        if not values:
            return
        numbers = {_key(name): float(value) for name, value in values.items()}
        record = {name: encode_number(value) for name, value in numbers.items()}
        self._spool.append("metrics", to=target, step=step or 0, values=record)
        odd = [name for name, value in numbers.items() if not math.isfinite(value)]
        news = {name: f"step {step}: {numbers[name]}" for name in odd if name not in self._non_finite}
        if news:
            # Stores keep NaN, but clamp infinity, and the UI's charts leave both out: say it where it is seen.
            self._non_finite.update(news)
            logger.warning("metrics that are no finite number: %s", ", ".join(f"{k} ({v})" for k, v in news.items()))
            text = "; ".join(f"{name} at {where}" for name, where in self._non_finite.items())
            self._spool.append("tags", to="run", values={"rest.non_finite": text[: delivery.MAX_TAG_VALUE]})


@contextlib.contextmanager
def stage_run(
    tracking: TrackingConfig,
    *,
    stage: str,
    pipeline_run: str,
    spool: Path,
    parameters: Mapping[str, Any],
    trial: TrialRun | None = None,
) -> Iterator[StageRun]:
    """The MLflow run of one stage, for as long as the `with` block lasts.

    An exception ends the stage's run and its parent as FAILED (the run as KILLED where it was told to stop), with the
    error's one line in the tag `rest.error`, and goes on. A server that is away stops nothing: one warning is logged,
    records are kept in `spool`, and sent when the server answers; what is left at the end is sent by
    `sender.sync(spool)` (`rest sync PATH`).

    Args:
        tracking: where MLflow is, and the experiment's name.
        stage: the stage's name, which becomes the run's.
        pipeline_run: what all stages of one pipeline run have in common; the parent run's name.
        spool: a folder for records on their way, outside of what the stage hands on. A second attempt of a stage may
            use the folder of the first: it becomes a new run, "<stage> (attempt 2)".
        parameters: the configuration that the stage runs with: sections (pydantic models) or plain values.
        trial: the trial of an ablation that the stage belongs to; its run is the parent then.

    Raises:
        UserError: the tracking URI or the name is not usable, or the spool cannot be written.
    """
    run, sender = _open(tracking, "stage", stage, pipeline_run, spool, trial)
    run.fail = lambda error: _close(run, sender, stage, "FAILED", store.redact(error)[: delivery.MAX_TAG_VALUE])
    try:
        run.parameters(parameters)
        yield run
    except BaseException as error:
        stopped = isinstance(error, (KeyboardInterrupt, SystemExit, GeneratorExit, Preempted))
        if not stopped and not isinstance(error, UserError):
            text = store.redact("".join(traceback.format_exception(error)))
            file = run._spool.keep_bytes(text.encode(), TRACEBACK_FILE)
            run._spool.append("artifact", to="run", file=file, folder="")
        _close(run, sender, stage, "KILLED" if stopped else "FAILED", _one_line(error))
        raise
    _close(run, sender, stage, "FINISHED", None)


def finish_pipeline(
    tracking: TrackingConfig,
    *,
    pipeline_run: str,
    spool: Path,
    description: str | None = None,
    metrics: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED",
) -> str:
    """Close the parent run, with a Markdown description, figures and tags; returns where to look.

    Called once, by what runs last, or by who ends a run before that. A parent of which a stage has failed is FAILED
    whatever `status` is; one that somebody else made (KFP) is described, not ended.
    """
    run, sender = _open(tracking, "pipeline", "finish", pipeline_run, spool)
    values = dict(tags or {})
    if description is not None:
        values["mlflow.note.content"] = store.redact(description)
    if values:
        run.tags(values)
    run.metrics(metrics or {})
    _close(run, sender, "finish", status, None)
    return run.link


def _open(
    tracking: TrackingConfig, kind: str, stage: str, pipeline_run: str, folder: Path, trial: TrialRun | None = None
) -> tuple[StageRun, Sender]:
    if not pipeline_run or len(pipeline_run) > _MAX_KEY or re.search(r"['\"`\\\x00-\x1f\x7f]", pipeline_run):
        raise UserError(
            f"pipeline run {pipeline_run!r:.80}: give it a name of 1 to {_MAX_KEY} characters without quotes, "
            "backslashes and line breaks"
        )
    uri = store.resolve_uri(tracking)
    common = {**_common_tags(), delivery.PIPELINE_RUN_TAG: pipeline_run}
    of_trial = {delivery.TRIAL_TAG: trial.name, **_tag_values(trial.tags)} if trial else {}
    spool = Spool(
        folder,
        {
            "kind": kind,
            "uri": store.without_credentials(uri),
            "experiment": tracking.experiment,
            "pipeline_run": pipeline_run,
            "stage": stage,
            "join": os.environ.get("MLFLOW_RUN_ID"),
            "pipeline_tags": {**common, delivery.KIND_TAG: "pipeline", delivery.PIPELINE_RUN_TAG: pipeline_run},
            "tags": {
                **common,
                **of_trial,
                delivery.KIND_TAG: "stage",
                delivery.PIPELINE_RUN_TAG: pipeline_run,
                delivery.STAGE_TAG: stage,
            },
            "trial": trial.name if trial else None,
            "trial_tags": {
                **common,
                **of_trial,
                delivery.KIND_TAG: "trial",
                delivery.PIPELINE_RUN_TAG: pipeline_run,
            },
        },
    )
    return StageRun(spool, uri), Sender(folder, spool.section, uri, GRACE_SECONDS)


def _recorded_in_joined_run(spool: Spool) -> dict[str, int]:
    """The last step of each metric that earlier attempts have recorded in the run that this one joins."""
    wanted = os.environ.get("MLFLOW_RUN_ID")
    # A run that stands for the whole pipeline is no stage's own: each attempt has a new one nested in it.
    earlier = {int(number) for number, ids in State.read(spool.folder).sections.items() if ids.run == wanted}
    last: dict[str, int] = {}
    for record, _ in read_records(spool.folder) if earlier else ():
        if record["section"] in earlier and record["op"] == "metrics" and record.get("to") == "run":
            last |= {name: max(last.get(name, -1), record["step"]) for name in record["values"]}
    return last


def _close(run: StageRun, sender: Sender, stage: str, status: str, error: str | None) -> None:
    spool = run._spool
    spool.append("end", status=status, error=error, stage=stage)
    if not sender.finish():
        left = sum(1 for _ in read_records(spool.folder, State.read(spool.folder).position))
        logger.warning(
            "%s: %d records could not be sent to MLflow at %s and are kept; send them with: rest sync %s",
            stage,
            left,
            store.redact(run._uri),
            spool.folder,
        )


def _common_tags() -> dict[str, str]:
    """Tags that MLflow's UI shows in columns of its own: who ran what, from which commit."""
    tags = {"mlflow.source.name": Path(sys.argv[0]).name or "python", "mlflow.source.type": "LOCAL"}
    if commit := manifest.git_commit():
        tags["mlflow.source.git.commit"] = commit
    with contextlib.suppress(KeyError, OSError):  # an arbitrary UID on a cluster has no name
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    line = text if isinstance(error, (UserError, Preempted)) else f"{type(error).__name__}: {text}".rstrip(": ")
    return store.redact(line)[: delivery.MAX_TAG_VALUE]


def _plain(value: Any) -> Any:
    """JSON-like values of a configuration: models become dictionaries, paths and other objects text."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_PARAM_VALUE else f"{text[: MAX_PARAM_VALUE - 1]}…"


def _key(name: str) -> str:
    """`name` as MLflow takes it for metrics, params and tags: other characters become underscores."""
    return _ILLEGAL.sub("_", name)[:_MAX_KEY]


def _file_name(name: str) -> str:
    """`name` as one file name: never a path, never hidden."""
    return _ILLEGAL.sub("_", name).replace("/", "_").lstrip(". ") or "_"


def _tag_values(values: Mapping[str, str]) -> dict[str, str]:
    return {_key(name): store.redact(str(value))[: delivery.MAX_TAG_VALUE] for name, value in values.items()}


def _cell(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, int, float, bool)) else json.dumps(_plain(value))
