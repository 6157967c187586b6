"""Delivery: the records of a spool become MLflow runs, in order, each once as far as MLflow allows.

Every step may be repeated without harm, so that a crash between sending and noting it costs nothing: runs are found
again by a tag, equal metrics, params, tags and dataset inputs are one to MLflow, artifacts are overwritten.

What can go wrong is of two kinds. *Away*: no connection, a time-out, HTTP 5xx, 401, 403, 408 or 429. Nothing is
passed over, the record is tried again later. *Rejected*: any other answer. The record is put aside in
`rejected.jsonl` with the answer, and the next one is sent.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_core.errors import UserError
from rest_core.operations.tracking import store
from rest_core.operations.tracking.spool import (
    JOURNAL,
    Record,
    RunIds,
    State,
    close_killed,
    open_section,
    read_records,
    read_rejected,
    sending,
    write_rejected,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

PIPELINE_RUN_TAG = "rest.pipeline_run"
KIND_TAG = "rest.kind"  # "pipeline" on a parent run, "trial" on one of an ablation's trials, "stage" on a nested one
TRIAL_TAG = "rest.trial"  # on a trial's run and on its stages' runs: the trial's name
SCHEME_TAG = "rest.scheme"  # likewise: the name of its scheme
SETTINGS_TAG = "rest.scheme_settings"  # likewise: what the scheme replaces in `rl` besides the weights, if anything
JOINED_TAG = "rest.joined"  # on a parent that somebody else (KFP) made
ERROR_TAG = "rest.error"  # on a stage's run; on the parent "rest.error/<stage>"
INPUT_TAG = "rest.input/"  # on a stage's run, with the input's name: where it was read from
STAGE_TAG = "rest.stage"
_SPOOL_TAG = "rest.spool_id"
_PARENT_TAG = "mlflow.parentRunId"
_TABLES_TAG = "mlflow.loggedArtifacts"

METRICS_A_CALL = 1000  # MLflow's limit
PARAMS_A_CALL = 100  # MLflow's limit
MAX_TAG_VALUE = 8000  # MLflow's limit
_CONNECTION = re.compile(
    r"API request to (?P<host>\w+://[^/\s]+).*?(?P<what>connection refused|timed out|name or service not known"
    r"|temporary failure in name resolution|no route to host|connection reset by peer|connection aborted"
    r"|too many \d+ error responses|certificate verify failed)",
    re.IGNORECASE,
)
_ARTIFACT_ATTEMPTS = 3


class Away(Exception):
    """The server, or the store behind it, does not take records at the moment."""


class Rejected(Exception):
    """The server has refused a record for good."""


@dataclass(frozen=True)
class Delivery:
    """What an attempt to send a spool has come to."""

    sent: int  # records that have gone out in this attempt
    left: int  # records that wait
    rejected: int  # records in rejected.jsonl
    problem: str | None  # why records wait

    @property
    def complete(self) -> bool:
        """Whether MLflow has everything."""
        return self.left == 0 and self.rejected == 0


def deliver(folder: Path, *, wait: bool = False) -> Delivery:
    """Send what waits in a spool, refused records included, once; never raises because a server is away.

    MLflow's own retries apply here and can take minutes; `sender.sync` bounds them.

    Args:
        folder: a spool, or a folder that contains spools at any depth.
        wait: wait for another process that sends the same spool, instead of raising `UserError`.
    """
    total = Delivery(0, 0, 0, None)
    for spool in find_spools(folder):
        with sending(spool, wait=wait):
            # Nobody else sends this spool, so nobody writes to it either: an open section is a stage that was killed.
            if (begin := open_section(spool)) is not None:
                close_killed(spool, begin)
            courier = Courier(spool)
            courier.retry_rejected()
            one = courier.run()
        total = Delivery(
            total.sent + one.sent, total.left + one.left, total.rejected + one.rejected, total.problem or one.problem
        )
    return total


def find_spools(folder: Path) -> list[Path]:
    """The spools at or below `folder`. Raises `UserError` when there is none."""
    spools = sorted(path.parent for path in folder.rglob(JOURNAL))
    if not spools:
        raise UserError(f"{folder}: no tracking records there ({JOURNAL}); give the folder that the message named")
    return spools


def explain(error: BaseException) -> Away | Rejected:
    """Which kind of failure an exception from MLflow, requests, boto3 or the file system is."""
    text = store.redact(_reason(error))
    status = _http_status(error)
    if status is None:
        status = 503 if isinstance(error, OSError) or type(error).__module__.startswith("botocore") else 400
    if status >= 500 or status in (401, 403, 408, 429):
        return Away(text)
    return Rejected(text)


def _reason(error: BaseException) -> str:
    """The error in a few words: MLflow wraps what went wrong with a connection in three layers of its own."""
    text = " ".join(str(error).split())
    if (wrapped := _CONNECTION.search(text)) is not None:
        return f"{wrapped['host']}: {wrapped['what'].lower()}"
    return text[:300] or type(error).__name__


def _http_status(error: BaseException) -> int | None:
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    response: Any = getattr(error, "response", None)
    status: int | None = (
        response.get("ResponseMetadata", {}).get("HTTPStatusCode")  # botocore.exceptions.ClientError
        if isinstance(response, dict)
        else getattr(response, "status_code", None)  # requests.HTTPError
    )
    return status


class Courier:
    """Sends one spool; the caller holds `spool.sending`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = State.read(folder)
        self._artifact_failures = 0

    def run(self) -> Delivery:
        """Send until the journal's end, or until the server is away."""
        sent, problem = 0, None
        try:
            for batch, position in self._batches():
                self._send_batch(batch)
                self.state.position = position
                self.state.problem = None
                self.state.write(self.folder)
                self._forget_files(batch)
                sent += len(batch)
        except Away as error:
            problem = str(error)
            if problem != self.state.problem:
                self.state.problem = problem
                self.state.write(self.folder)
        left = sum(1 for _ in read_records(self.folder, self.state.position))
        return Delivery(sent, left, len(read_rejected(self.folder)), problem)

    def retry_rejected(self) -> None:
        """Try every refused record once more; what is refused again stays."""
        remaining = []
        for entry in read_rejected(self.folder):
            record = entry["record"]
            try:
                self._apply(record)
                self._forget_files([record])
            except (Away, Rejected) as error:
                remaining.append({"record": record, "answer": str(error)})
        write_rejected(self.folder, remaining)

    def _batches(self) -> Iterator[tuple[list[Record], int]]:
        """Records with the position behind them; metrics in a row for the same run come together."""
        batch: list[Record] = []
        size = position = 0
        for record, after in read_records(self.folder, self.state.position):
            values = len(record["values"]) if record["op"] == "metrics" else METRICS_A_CALL
            same = batch and all(batch[0].get(key) == record.get(key) for key in ("op", "section", "to"))
            if batch and not (same and size + values <= METRICS_A_CALL):
                yield batch, position
                batch, size = [], 0
            batch.append(record)
            size += values
            position = after
        if batch:
            yield batch, position

    def _send_batch(self, batch: list[Record]) -> None:
        try:
            self._apply(*batch)
            return
        except Rejected as error:
            if batch[0]["op"] == "begin":
                # Without its runs nothing of this section can be sent: it waits until the cause is mended.
                raise Away(f"the run cannot be created: {error}") from error
            if len(batch) == 1:
                logger.error("MLflow refused a record (%s), kept in %s: %s", batch[0]["op"], self.folder, error)
                entry = {"record": batch[0], "answer": str(error)}
                write_rejected(self.folder, [*read_rejected(self.folder), entry])
                return
        for record in batch:
            self._send_batch([record])

    def _apply(self, *batch: Record) -> None:
        """Carry out one record, or several of op `metrics`. Raises `Away` or `Rejected`, nothing else."""
        record = batch[0]
        handler = _HANDLERS.get(record["op"])
        if handler is None:
            raise Rejected(f"unknown record: {json.dumps(record)[:200]}")
        try:
            if record["op"] == "begin":
                handler(self, record)
                return
            ids = self.state.sections.get(str(record["section"]))
            if ids is None:
                raise Rejected(f"section {record['section']} has no run")
            if record["op"] == "metrics":
                self._metrics(batch, self._target(record, ids))
            else:
                handler(self, record, ids)
            if record["op"] in ("artifact", "table"):
                self._artifact_failures = 0
        except (Away, Rejected):
            raise
        except Exception as error:  # every client library has failures of its own: `explain` sorts them
            raise self._judge(error, record) from error

    def _judge(self, error: Exception, record: Record) -> Away | Rejected:
        kind = explain(error)
        if isinstance(kind, Away) and record["op"] in ("artifact", "table"):
            # An artifact store that is down or misconfigured must not hold up the figures for ever.
            self._artifact_failures += 1
            if self._artifact_failures >= _ARTIFACT_ATTEMPTS and self._answers():
                return Rejected(f"the server answers, its artifact store does not: {kind}")
        return kind

    def _answers(self) -> bool:
        try:
            self.client.search_experiments(max_results=1)
        except Exception as error:
            return isinstance(explain(error), Rejected)
        return True

    @cached_property
    def uri(self) -> str:
        begin = next(record for record, _ in read_records(self.folder) if record["op"] == "begin")
        return store.with_credentials(begin["uri"])

    @cached_property
    def client(self) -> MlflowClient:
        return store.open_client(self.uri)

    @staticmethod
    def _target(record: Record, ids: RunIds) -> str:
        return ids.pipeline if record.get("to") == "pipeline" else ids.run

    # One handler an operation.

    def _begin(self, record: Record) -> None:
        experiment = store.ensure_experiment(self.client, self.uri, record["experiment"])
        joined = self.client.get_run(record["join"]) if record.get("join") else None
        if joined is not None:
            experiment = joined.info.experiment_id
            parent_id = joined.data.tags.get(_PARENT_TAG)
            parent = self.client.get_run(parent_id) if parent_id else joined
            if not parent_id:  # a run given for the whole pipeline: the stages' own runs are nested in it
                joined = None
            for name, value in {**record["pipeline_tags"], JOINED_TAG: "true"}.items():
                self.client.set_tag(parent.info.run_id, name, value)
        else:
            parent = find_pipeline_run(self.client, experiment, record["pipeline_run"]) or self._create_parent(
                experiment, record
            )
        owned = JOINED_TAG not in parent.data.tags and not record.get("join")
        root, root_owned = None, False
        if record.get("trial"):
            root, root_owned = parent.info.run_id, owned
            parent, owned = self._open_trial(experiment, record, parent), True
        run = parent
        if record["kind"] == "stage":
            run = (
                joined or self._find_stage_run(experiment, record) or self._create_stage_run(experiment, record, parent)
            )
            if joined is not None:
                for name, value in record["tags"].items():
                    self.client.set_tag(run.info.run_id, name, value)
        self.state.sections[str(record["section"])] = RunIds(
            experiment=experiment,
            pipeline=parent.info.run_id,
            pipeline_owned=owned,
            run=run.info.run_id,
            run_owned=joined is None and (owned or record["kind"] == "stage"),
            root=root,
            root_owned=root_owned,
        )

    def _create_parent(self, experiment: str, record: Record) -> Run:
        return self._create_once(
            lambda: find_pipeline_run(self.client, experiment, record["pipeline_run"]),
            experiment,
            start_time=record["time"],
            run_name=record["pipeline_run"],
            tags=record["pipeline_tags"],
        )

    def _open_trial(self, experiment: str, record: Record, root: Run) -> Run:
        """The trial's run, nested in the pipeline's; as long as one of its stages runs, so does it."""

        def find() -> Run | None:
            return find_trial_run(self.client, experiment, record["pipeline_run"], record["trial"])

        found = find() or self._create_once(
            find,
            experiment,
            start_time=record["time"],
            run_name=record["trial"],
            tags={**record["trial_tags"], _PARENT_TAG: root.info.run_id},
        )
        if found.info.status != "RUNNING":
            self.client.update_run(found.info.run_id, status="RUNNING")
        return found

    def _create_once(self, find: Callable[[], Run | None], experiment: str, **values: Any) -> Run:
        made = self.client.create_run(experiment, **values)
        first = find()
        if first is not None and first.info.run_id != made.info.run_id:  # another stage made it at the same time
            self.client.delete_run(made.info.run_id)
            return first
        return made

    def _find_stage_run(self, experiment: str, record: Record) -> Run | None:
        found = self.client.search_runs([experiment], f"tags.`{_SPOOL_TAG}` = '{record['spool_id']}'", max_results=1)
        return found[0] if found else None

    def _create_stage_run(self, experiment: str, record: Record, parent: Run) -> Run:
        # Charts name their curves after runs: those of several trials must be told apart.
        name = f"{record['stage']} · {record['trial']}" if record.get("trial") else record["stage"]
        if record["attempt"] > 1:
            name = f"{name} (attempt {record['attempt']})"
        tags = {**record["tags"], _PARENT_TAG: parent.info.run_id, _SPOOL_TAG: record["spool_id"]}
        return self.client.create_run(experiment, start_time=record["time"], run_name=name, tags=tags)

    def _metrics(self, batch: tuple[Record, ...], run_id: str) -> None:
        from mlflow.entities import Metric

        metrics = [
            Metric(name, float(value), record["time"], record["step"])
            for record in batch
            for name, value in record["values"].items()
        ]
        for start in range(0, len(metrics), METRICS_A_CALL):
            self.client.log_batch(run_id, metrics=metrics[start : start + METRICS_A_CALL])

    def _params(self, record: Record, ids: RunIds) -> None:
        from mlflow.entities import Param

        run_id = self._target(record, ids)
        params = [Param(name, value) for name, value in record["values"].items()]
        for start in range(0, len(params), PARAMS_A_CALL):
            some = params[start : start + PARAMS_A_CALL]
            try:
                self.client.log_batch(run_id, params=some)
            except Exception as error:
                if isinstance(explain(error), Away):
                    raise
                self._params_one_by_one(run_id, some)

    def _params_one_by_one(self, run_id: str, params: list[Any]) -> None:
        """MLflow refuses a whole batch for one param that has another value already: send the rest."""
        refused = []
        for param in params:
            try:
                self.client.log_batch(run_id, params=[param])
            except Exception as error:
                if isinstance(explain(error), Away):
                    raise
                refused.append(f"{param.key}: {explain(error)}")
        if refused:
            raise Rejected("; ".join(refused))

    def _tags(self, record: Record, ids: RunIds) -> None:
        self._set_tags(self._target(record, ids), record["values"])

    def _set_tags(self, run_id: str, values: dict[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in values.items()])

    def _artifact(self, record: Record, ids: RunIds) -> None:
        path = self.folder / "files" / record["file"]
        self.client.log_artifact(self._target(record, ids), str(path), record["folder"] or None)

    def _table(self, record: Record, ids: RunIds) -> None:
        self._artifact(record, ids)
        # This tag is what MlflowClient.log_table sets, and what makes the UI show the file as a table.
        run_id = self._target(record, ids)
        tables = json.loads(self.client.get_run(run_id).data.tags.get(_TABLES_TAG, "[]"))
        entry = {"path": f"{record['folder']}/{Path(record['file']).name}".lstrip("/"), "type": "table"}
        if entry not in tables:
            self.client.set_tag(run_id, _TABLES_TAG, json.dumps([*tables, entry]))

    def _dataset(self, record: Record, ids: RunIds) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type=record["source_type"],
            source=json.dumps({"uri": record["source"]}),
            profile=json.dumps({"num_rows": record["rows"]}),
        )
        inputs = [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", record["context"])])]
        for run_id in dict.fromkeys((ids.run, ids.pipeline)):
            self.client.log_inputs(run_id, inputs)

    def _end(self, record: Record, ids: RunIds) -> None:
        status, error = record["status"], record.get("error")
        if ids.run == ids.pipeline and ids.run_owned:
            failed = any(tag.startswith(f"{ERROR_TAG}/") for tag in self.client.get_run(ids.run).data.tags)
            status = "FAILED" if failed else status
        if error:
            self._set_tags(ids.run, {ERROR_TAG: error})
        if ids.run_owned:
            self.client.set_terminated(ids.run, status, end_time=record["time"])
        if ids.run != ids.pipeline:
            self._tell_parent(record, ids.pipeline, ids.pipeline_owned, record["stage"])
        if ids.root is not None:
            trial = self.client.get_run(ids.pipeline)
            what = f"{record['stage']} {trial.info.run_name}".replace(" · ", " ")  # no key of a tag may have the dot
            self._tell_parent(record, ids.root, ids.root_owned, what)
            self._close_trial(record, trial)

    def _tell_parent(self, record: Record, parent_id: str, owned: bool, stage: str) -> None:
        """A parent is FAILED as long as a stage of it has failed and no later attempt of that stage has succeeded."""
        own = f"{ERROR_TAG}/{stage}"
        if record.get("error"):
            self._set_tags(parent_id, {own: record["error"]})
            if owned:
                self.client.set_terminated(parent_id, "FAILED", end_time=record["time"])
            return
        parent = self.client.get_run(parent_id)
        errors = {tag for tag in parent.data.tags if tag.startswith(f"{ERROR_TAG}/")}
        if own in errors:
            self.client.delete_tag(parent_id, own)
            if owned and errors == {own}:
                self.client.update_run(parent_id, status="RUNNING")

    def _close_trial(self, record: Record, trial: Run) -> None:
        """A trial has no last stage of its own: it has ended when none of its stages runs and none has failed."""
        if any(tag.startswith(f"{ERROR_TAG}/") for tag in trial.data.tags):
            return
        wanted = f"tags.`{_PARENT_TAG}` = '{trial.info.run_id}' AND attributes.status = 'RUNNING'"
        if not self.client.search_runs([trial.info.experiment_id], wanted, max_results=1):
            self.client.set_terminated(trial.info.run_id, "FINISHED", end_time=record["time"])

    def _forget_files(self, batch: list[Record]) -> None:
        """Delete the copies of artifacts that are sent; those of refused records are still wanted."""
        if not any("file" in record for record in batch):
            return
        wanted = {entry["record"].get("file") for entry in read_rejected(self.folder)}
        for record in batch:
            if "file" in record and record["file"] not in wanted:
                shutil.rmtree((self.folder / "files" / record["file"]).parent, ignore_errors=True)


_HANDLERS: dict[str, Any] = {
    "begin": Courier._begin,
    "metrics": Courier._metrics,
    "params": Courier._params,
    "tags": Courier._tags,
    "artifact": Courier._artifact,
    "table": Courier._table,
    "dataset": Courier._dataset,
    "end": Courier._end,
}


def find_pipeline_run(client: MlflowClient, experiment: str, pipeline_run: str) -> Run | None:
    """The parent run of a pipeline run; of several, the one that was made first."""
    return _first_made(
        client, experiment, f"tags.`{PIPELINE_RUN_TAG}` = '{pipeline_run}' AND tags.`{KIND_TAG}` = 'pipeline'"
    )


def find_trial_run(client: MlflowClient, experiment: str, pipeline_run: str, trial: str) -> Run | None:
    """The run of one trial of a pipeline run; of several, the one that was made first."""
    wanted = f"tags.`{PIPELINE_RUN_TAG}` = '{pipeline_run}' AND tags.`{KIND_TAG}` = 'trial'"
    return _first_made(client, experiment, f"{wanted} AND tags.`{TRIAL_TAG}` = '{trial}'")


def _first_made(client: MlflowClient, experiment: str, wanted: str) -> Run | None:
    found = client.search_runs([experiment], wanted, order_by=["attributes.start_time ASC", "attributes.run_id ASC"])
    return found[0] if found else None
