"""Delivery: the records of a journal become MLflow runs, in order.

Replaying a journal changes nothing that MLflow has already: runs are found again by their tags, MLflow itself keeps
equal metrics (name, step, time, value), params, tags and dataset inputs once, and artifacts are overwritten. So a crash
between sending records and noting that costs nothing, and a journal without its `state.json` is sent again as a whole.

What can go wrong is of two kinds (`answers`). *Away*: the record waits, and is sent later. *Refused*, like a line that
is no record and a file that is lost: it is logged, and the next record is sent.

Where records go is the caller's to say, never a journal's: it may have been copied from elsewhere.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from rest_core.credentials import redact
from rest_core.errors import UserError, one_line
from rest_core.operations.tracking import (
    artifacts,
    endings,
    journal,
    logged_models,
    prompts,
    run_tree,
    store,
    traces,
    waits,
)
from rest_core.operations.tracking.answers import Away, Refused, explain
from rest_core.operations.tracking.journal import JOURNAL, Lane, RunIds, State, read_records
from rest_core.operations.tracking.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 20.0  # of one request, its retries included: what waits is sent later
_NOTE_SECONDS = 0.5
_STEPS_A_CALL = 50  # of metrics; MLflow's client splits what is more than its limit


class _NoRun(Exception):
    """MLflow does not accept what a journal's records are of."""


@dataclass(frozen=True)
class Delivery:
    """The result of an attempt to send records."""

    sent: int  # records that have gone out in this attempt
    left: int  # records that wait
    refused: int  # values and files that MLflow has not accepted, in all attempts
    problem: str | None  # why records wait
    away: Lane | None = None  # what MLflow does not take at the moment: nothing, or files


def deliver(folder: Path, uri: str, *, moved: bool = False) -> Delivery:
    """Send what waits in the journals at or below `folder`, and end those whose process was killed.

    A server that is away, and a journal that a running stage sends, are reported, not raised. When MLflow does not
    answer, no further journal waits for it.

    Args:
        folder: a journal, or a folder that contains some at any depth.
        uri: where MLflow is; it may carry credentials. A journal that was recorded for another address is not sent.
        moved: send those, too: the store is the same under a new address.

    Raises:
        UserError: there is no journal.
    """
    paths = journal.find(folder)
    if not paths:
        raise UserError(f"{folder}: no tracking records there ({JOURNAL}); give the folder that the message named")
    each: list[Delivery] = []
    for path in paths:
        away = next((one for one in each if one.away == "values"), None)
        lanes = ("values",) if any(one.away == "files" for one in each) else get_args(Lane)
        try:
            with journal.hold(path):
                journal.close_killed(path)
                if away is None:
                    each.append(Replay(path, uri, moved=moved).run(lanes))
                else:
                    each.append(Delivery(0, journal.left(path), State.read(path).refused, away.problem))
        except (UserError, OSError) as error:
            problem = str(error) if isinstance(error, UserError) else f"{path}: {store.reason(error)}"
            each.append(Delivery(0, journal.left(path), State.read(path).refused, problem))
    problems = dict.fromkeys(one.problem for one in each if one.problem)
    return Delivery(
        sum(one.sent for one in each),
        sum(one.left for one in each),
        sum(one.refused for one in each),
        "; ".join(problems) or None,
        next((one.away for one in each if one.away), None),
    )


class Replay:
    """Sends one journal to one store; the caller holds it (`journal.hold`)."""

    def __init__(self, path: Path, uri: str, *, moved: bool = False) -> None:
        self.path, self.uri = path, uri
        self.state = State.read(path)
        self._moved, self._noted = moved, 0.0
        self._answers: set[str] = set()  # refusals that have been logged
        self._models: dict[str, str | None] = {}  # ids of MLflow's models, by identity; None = it was refused

    def run(self, lanes: Sequence[Lane] = get_args(Lane)) -> Delivery:
        """Send until the journal's end, or until MLflow is away."""
        sent, problem = 0, None
        away: Lane | None = None
        if journal.left(self.path) and (problem := self._misplaced()) is None:
            try:
                away = "values"
                with waits.at_most(REQUEST_SECONDS):
                    # Asked first, because it is the shortest wait.
                    if store.is_server(self.uri) and (why := store.unreachable(self.uri)):
                        raise Away(why)
                    try:
                        for away in lanes:
                            for batch, position in self._batches(away):
                                self._send(batch)
                                self.state.sent[away] = position
                                self._note(now=bool(batch) and batch[0]["op"] == "begin")
                                sent += len(batch)
                    finally:
                        self._note(now=True)
                away = None
            except _NoRun as error:
                problem, away = f"{self.path}: {error}", None
            except (Away, OSError) as error:
                problem = str(error) if isinstance(error, Away) else store.reason(error)
        return Delivery(sent, journal.left(self.path), self.state.refused, problem, away)

    def _note(self, *, now: bool) -> None:
        """Write how far the journal has been sent; not after each record, because the disk is waited for."""
        if now or time.monotonic() > self._noted + _NOTE_SECONDS:
            self.state.write(self.path)
            self._noted = time.monotonic()

    def _misplaced(self) -> str | None:
        """Why a journal is not for this store."""
        if self.begin is None:
            return f"{self.path / JOURNAL}: its first line is damaged, so that its records cannot be sent"
        if self._moved or store.is_same(self.begin["uri"], self.uri):
            return None
        recorded, here = redact(self.begin["uri"]), redact(self.uri)
        return (
            f"they were recorded for {recorded}, and MLflow is {here} here; send them to {recorded} with --set "
            f"tracking.uri={recorded} if you trust that address, or to {here} with --moved"
        )

    @cached_property
    def begin(self) -> Record | None:
        """The first record; None where it is damaged."""
        first, _ = next(read_records(self.path))
        return first if first["op"] == "begin" else None

    @cached_property
    def client(self) -> MlflowClient:
        return store.open_client(self.uri)

    def _batches(self, lane: Lane) -> Iterator[tuple[list[Record], int]]:
        """Records of a lane with the position behind them; metrics in a row for the same run come together."""
        batch: list[Record] = []
        position = self.state.sent[lane]
        for record, after in read_records(self.path, position):
            if journal.lane(record) == lane:
                together = record["op"] == "metrics" and len(batch) < _STEPS_A_CALL
                if batch and not (together and all(batch[0].get(key) == record.get(key) for key in ("op", "to", "of"))):
                    yield batch, position
                    batch = []
                batch.append(record)
            position = after
        if position > self.state.sent[lane]:
            yield batch, position

    def _send(self, batch: Sequence[Record]) -> None:
        if not batch:
            return
        try:
            self._apply(batch[0], batch)
        except Exception as error:  # every client library has failures of its own: `explain` sorts them
            answer = explain(error)
            if batch[0]["op"] == "begin":  # without its runs nothing else can be sent
                kind = Away if isinstance(answer, Away) else _NoRun
                raise kind(f"the run cannot be created: {answer}") from error
            if isinstance(answer, Away):
                raise answer from error
            what = batch[0]["text"] if batch[0]["op"] == "unreadable" else json.dumps(batch[0])
            self._refuse(one_line(redact(what), longest=200), answer)

    def _apply(self, record: Record, batch: Sequence[Record]) -> None:
        from mlflow.entities import Metric, Param

        if record["op"] == "begin":
            self.state.ids = run_tree.open_runs(self.client, self.uri, record, self._set_tags)
            return
        ids = self.state.ids
        assert ids is not None
        run_id = ids.pipeline if record.get("to") == "pipeline" else ids.run
        match record["op"]:
            case "metrics":
                news = [
                    Metric(name, float(value), one["time"], one["step"] or 0, **self._model_of(one, name, run_id))
                    for one in batch
                    for name, value in one["values"].items()
                    if one["step"] is None or one["step"] > self._recorded_before.get(name, -1)
                ]
                self._log(run_id, "metrics", news)
            case "params":
                self._log(run_id, "params", [Param(name, value) for name, value in record["values"].items()])
            case "tags":
                self._set_tags(run_id, record["values"])
            case "artifact" | "traces":
                self._file(record, ids)
            case "dataset":
                self._dataset(record, ids)
            case "model" | "prompt":
                with self._optional(f"{record['op']} {record['name']}"):
                    self._link(record, ids)
            case "end":
                assert self.begin is not None
                endings.end(self.client, self.begin, record, ids)
            case _:
                raise UserError(f"it is no record ({record['problem']})")

    def _link(self, record: Record, ids: RunIds) -> None:
        """Have the run name a model that it has made, or a prompt that it has used."""
        if record["op"] == "prompt":
            prompts.link(self.client, ids.experiment, ids.run, record["name"], record["template"])
            return
        model = logged_models.ensure(self.client, ids.experiment, record["identity"], record["name"], ids.run)
        logged_models.note_maker(self.client, model, ids.run)
        for run_id in dict.fromkeys((ids.run, ids.pipeline)):
            logged_models.is_output(self.client, run_id, model)

    @contextmanager
    def _optional(self, what: str) -> Iterator[None]:
        """Around what must not keep figures and files back: an answer of a server that is there refuses it.

        Rights may be missing there (403) that a run does not need, and a server may fail (500) at one value for ever.
        """
        try:
            yield
        except Exception as error:  # see _send
            answer = explain(error)
            if isinstance(answer, Away) and (not store.is_server(self.uri) or store.unreachable(self.uri)):
                raise
            self._refuse(what, Refused(str(answer)))

    def _log(self, run_id: str, kind: str, values: Sequence[Any]) -> None:
        """Log metrics, params or tags; one that MLflow refuses keeps no other back."""
        entities: dict[str, Any] = {kind: values}
        try:
            self.client.log_batch(run_id, **entities)
        except Exception as error:  # see _send
            answer = explain(error)
            if isinstance(answer, Away):
                raise
            if len(values) == 1:
                self._refuse(f"{kind} {values[0].key}", answer)
                return
            half = len(values) // 2
            self._log(run_id, kind, values[:half])
            self._log(run_id, kind, values[half:])

    def _refuse(self, what: str, answer: Refused) -> None:
        self.state.refused += 1
        if str(answer) not in self._answers:
            self._answers.add(str(answer))
            logger.error("refused, and left in %s: %s: %s", self.path, what, answer)

    @cached_property
    def _recorded_before(self) -> dict[str, int]:
        """The last step of each metric that earlier attempts have recorded in the run that this one has joined."""
        ids = self.state.ids
        last: dict[str, int] = {}
        for path in journal.find(self.path.parent):
            before = State.read(path).ids if path < self.path else None
            if ids is None or before is None or before.run != ids.run:
                continue
            for record, _ in read_records(path):
                if record["op"] == "metrics" and record["to"] == "run" and record["step"] is not None:
                    last |= {name: max(last.get(name, -1), record["step"]) for name in record["values"]}
        return last

    def _model_of(self, record: Record, metric: str, run_id: str) -> dict[str, Any]:
        """The fields of a metric that say which model and data set it is a figure of."""
        of = record.get("of")
        if of is None or metric not in of["metrics"]:
            return {}
        if of["identity"] not in self._models:
            model_id = None  # a figure without its model is better than none
            with self._optional(f"model {of['name']}"):
                assert self.state.ids is not None
                model = logged_models.ensure(self.client, self.state.ids.experiment, of["identity"], of["name"])
                logged_models.is_input(self.client, run_id, model)
                model_id = model.model_id
            self._models[of["identity"]] = model_id
        if (model_id := self._models[of["identity"]]) is None:
            return {}
        return {
            "model_id": model_id,
            "dataset_name": of["dataset"],
            "dataset_digest": of["digest"],
            "run_id": run_id,
        }

    def _file(self, record: Record, ids: RunIds) -> None:
        """Send an artifact or traces, and delete the copy."""
        run_id = ids.pipeline if record.get("to") == "pipeline" else ids.run
        try:
            file = journal.kept_file(self.path, record["file"])
        except FileNotFoundError:
            if not self._was_sent(record, run_id):  # before the journal was told so
                raise UserError(f"its file is lost: {self.path / 'files' / record['file']}") from None
            return
        except (OSError, ValueError) as error:
            why = store.reason(error) if isinstance(error, OSError) else str(error)
            raise UserError(f"its file {self.path / 'files' / record['file']} is not sent: {why}") from None
        refused = self.state.refused
        if record["op"] == "artifact":
            artifacts.send(self.client, run_id, record, file)
        else:
            self._traces(record, ids, file)
        if self.state.refused == refused:  # what is refused stays
            journal.forget(file)

    def _was_sent(self, record: Record, run_id: str) -> bool:
        if record["op"] == "artifact":
            return artifacts.is_there(self.client, run_id, record)
        assert self.state.ids is not None
        most = record["first"] + 1
        return len(self.client.search_traces([self.state.ids.experiment], run_id=run_id, max_results=most)) == most

    def _traces(self, record: Record, ids: RunIds, file: Path) -> None:
        self.client.set_tag(ids.run, *traces.RUN_TYPE)
        for number, row in enumerate(json.loads(file.read_bytes()), start=record["first"]):
            with self._optional(f"the trace of {str(row['id'])[:100]}"):
                traces.send(
                    self.uri,
                    row,
                    experiment_id=ids.experiment,
                    run_id=ids.run,
                    rules=record["rules"],
                    time_ms=record["time"] - number,  # MLflow's pages begin with the newest
                )

    def _dataset(self, record: Record, ids: RunIds) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=record["name"],
            digest=record["digest"],
            source_type=record["source_type"],
            source=json.dumps({"uri": record["source"]}),
            profile=json.dumps({"num_rows": record["rows"]}),
            schema=_schema(record.get("columns")),
        )
        inputs = [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", record["context"])])]
        for run_id in dict.fromkeys((ids.run, ids.pipeline)):
            self.client.log_inputs(run_id, inputs)

    def _set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self._log(run_id, "tags", [RunTag(name, str(value)) for name, value in tags.items()])


def _schema(columns: Mapping[str, str] | None) -> str | None:
    """A dataset's columns and their types, as MLflow writes a schema."""
    if not columns:
        return None
    return json.dumps({"mlflow_colspec": [{"name": name, "type": kind} for name, kind in columns.items()]})
