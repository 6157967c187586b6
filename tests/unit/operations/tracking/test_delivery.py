"""Delivery into a real MLflow store on SQLite, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, PERMISSION_DENIED

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.tracking import answers, journal, runs
from rest_core.operations.tracking.answers import Away, Refused
from rest_core.operations.tracking.delivery import Delivery, deliver
from rest_core.operations.tracking.journal import Journal, RunIds, State


def begun(spool: Path, tracking: TrackingConfig, stage: str | None = "train", join: str | None = None) -> Journal:
    records = Journal(spool)
    levels = runs._levels("p", stage, None, records.attempt)
    records.append("begin", uri=tracking.uri, experiment="test", stage=stage, join=join, levels=levels)
    return records


def end(records: Journal, error: str | None = None) -> None:
    records.append("end", status="FAILED" if error else "FINISHED", error=error)
    records.close()


def all_runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def ids(records: Journal) -> RunIds:
    found = State.read(records.path).ids
    assert found is not None
    return found


def test_original_times_and_steps_arrive_in_a_nested_run(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    records = begun(tmp_path / "spool", tracking)
    for step in (1, 2):
        records.append("metrics", to="run", step=step, values={"loss": step / 2, "odd": "nan"}, time=1000 + step)
    records.append("metrics", to="pipeline", step=0, values={"bfcl/call_accuracy": 0.5})
    end(records)
    assert deliver(tmp_path, str(tracking.uri)) == Delivery(sent=5, left=0, refused=0, problem=None)
    found = ids(records)
    assert [(m.value, m.step, m.timestamp) for m in client.get_metric_history(found.run, "loss")] == [
        (0.5, 1, 1001),
        (1.0, 2, 1002),
    ]
    assert len(client.get_metric_history(found.run, "odd")) == 2  # MLflow keeps NaN
    run, parent = client.get_run(found.run), client.get_run(found.pipeline)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (run.info.run_name, run.info.status) == ("train", "FINISHED")
    assert (parent.info.run_name, parent.info.status) == ("p", "RUNNING")
    assert parent.data.metrics == {"bfcl/call_accuracy": 0.5}


def test_sending_everything_twice_changes_nothing(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    records = begun(tmp_path, tracking)
    records.append("params", to="run", values={"cfg/a": "1"})
    records.append("metrics", to="run", step=1, values={"loss": 1.0})
    records.append("dataset", name="d", source="s", source_type="local", digest="f" * 36, rows=3, context="training")
    kept = records.keep(b'{"columns": ["a"], "data": [[1]]}', "t.json")
    records.append("artifact", to="run", file=kept, folder="tables", table=True)
    end(records)
    deliver(tmp_path, str(tracking.uri))
    state = State.read(records.path)
    State().write(records.path)  # as if the process had died before it noted what was sent
    deliver(tmp_path, str(tracking.uri))
    assert State.read(records.path) == state
    assert len(all_runs(client)) == 2
    run = client.get_run(ids(records).run)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1
    assert len(json.loads(run.data.tags["mlflow.loggedArtifacts"])) == 1
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("d", "f" * 36, "training")


def test_a_second_stage_finds_the_parent_and_a_second_attempt_is_a_new_run(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    first = begun(tmp_path / "a", tracking, "prepare")
    end(first)
    second = begun(tmp_path / "b", tracking)
    end(second, "boom")
    deliver(tmp_path, str(tracking.uri))
    assert ids(first).pipeline == ids(second).pipeline
    parent = client.get_run(ids(first).pipeline)
    assert (parent.info.status, parent.data.tags["rest.error/train"]) == ("FAILED", "boom")
    assert client.get_run(ids(second).run).data.tags["rest.error"] == "boom"

    again = begun(tmp_path / "b", tracking)
    end(again)
    deliver(tmp_path, str(tracking.uri))
    parent = client.get_run(ids(first).pipeline)
    assert (parent.info.status, "rest.error/train" in parent.data.tags) == ("RUNNING", False)
    assert client.get_run(ids(again).run).info.run_name == "train (attempt 2)"


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), ("boom", "FAILED")])
def test_finishing_does_not_hide_a_failed_stage(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, error: str | None, status: str
) -> None:
    end(begun(tmp_path / "a", tracking), error)
    last = begun(tmp_path / "b", tracking, None)
    end(last)
    deliver(tmp_path, str(tracking.uri))
    assert client.get_run(ids(last).pipeline).info.status == status
    assert len(all_runs(client)) == 2


def test_a_given_run_is_joined_and_left_open(tracking: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    experiment = client.create_experiment("kfp")
    outer = client.create_run(experiment).info.run_id
    inner = client.create_run(experiment, tags={"mlflow.parentRunId": outer}).info.run_id
    records = begun(tmp_path / "a", tracking, join=inner)
    records.append("metrics", to="pipeline", step=0, values={"x": 1})
    end(records, "boom")
    finish = begun(tmp_path / "b", tracking, None, join=inner)
    end(finish)
    deliver(tmp_path, str(tracking.uri))
    assert (ids(records).run, ids(records).pipeline) == (inner, outer)
    for run_id in (inner, outer):
        assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(outer).data.metrics == {"x": 1}
    assert client.get_run(inner).data.tags["rest.error"] == "boom"


def test_a_given_run_without_a_parent_becomes_the_parent(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    """Two stages under one given run: each has a run of its own, so that neither overwrites the other's artifacts."""
    given = client.create_run(client.create_experiment("own")).info.run_id
    one, two = (begun(tmp_path / name, tracking, name, join=given) for name in ("a", "b"))
    end(one)
    end(two)
    deliver(tmp_path, str(tracking.uri))
    assert ids(one).pipeline == ids(two).pipeline == given
    assert len({ids(one).run, ids(two).run, given}) == 3
    assert client.get_run(ids(one).run).data.tags["mlflow.parentRunId"] == given
    assert client.get_run(ids(one).run).info.status == "FINISHED"
    assert client.get_run(given).info.status == "RUNNING"  # whoever made it ends it


def test_a_stage_that_was_killed_is_ended_by_the_next_delivery(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    records = begun(tmp_path, tracking)
    records.close()
    deliver(tmp_path, str(tracking.uri))
    assert client.get_run(ids(records).run).info.status == "KILLED"


def test_one_conflicting_param_keeps_no_other_back(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = begun(tmp_path, tracking)
    records.append("params", to="run", values={"cfg/a": "1"})
    records.append("params", to="run", values={"cfg/a": "2", "cfg/b": "3", "cfg/c": "4"})
    records.append("metrics", to="run", step=0, values={"after": 1.0})
    end(records)
    done = deliver(tmp_path, str(tracking.uri))
    assert (done.left, done.refused) == (0, 1)
    run = client.get_run(ids(records).run)
    assert run.data.params == {"cfg/a": "1", "cfg/b": "3", "cfg/c": "4"}
    assert run.data.metrics == {"after": 1.0}
    (message,) = [message for message in caplog.messages if "refused" in message]
    assert "params cfg/a" in message and str(records.path) in message


def test_a_metric_that_is_refused_keeps_no_other_back(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    records = begun(tmp_path, tracking)
    for name in ("good", "b@d", "fine"):
        records.append("metrics", to="run", step=0, values={name: 1.0})
    end(records)
    assert deliver(tmp_path, str(tracking.uri)).refused == 1
    assert set(client.get_run(ids(records).run).data.metrics) == {"good", "fine"}


def test_more_metrics_than_a_call_takes(tracking: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    records = begun(tmp_path, tracking)
    for step in range(3):
        records.append("metrics", to="run", step=step, values={f"m{i}": float(step) for i in range(700)})
    end(records)
    assert deliver(tmp_path, str(tracking.uri)) == Delivery(sent=5, left=0, refused=0, problem=None)
    metrics = client.get_run(ids(records).run).data.metrics
    assert len(metrics) == 700
    assert set(metrics.values()) == {2.0}


def test_a_table_is_one_to_mlflow_and_its_copy_is_gone(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.uri is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)  # load_table ignores its client's
    records = begun(tmp_path / "spool", tracking)
    kept = records.keep(b'{"columns": ["a"], "data": [[1], [2]]}', "t.json")
    records.append("artifact", to="run", file=kept, folder="tables", table=True)
    end(records)
    assert deliver(tmp_path, str(tracking.uri)).left == 0
    frame = client.load_table(client.get_run(ids(records).run).info.experiment_id, artifact_file="tables/t.json")
    assert list(frame["a"]) == [1, 2]
    assert list((records.path / "files").iterdir()) == []


def test_a_server_that_is_away_keeps_everything(tmp_path: Path) -> None:
    records = begun(tmp_path, TrackingConfig(uri="http://127.0.0.1:9"))
    records.append("metrics", to="run", step=0, values={"a": 1.0})
    end(records)
    done = deliver(tmp_path, "http://127.0.0.1:9")
    assert done == Delivery(sent=0, left=3, refused=0, problem="Connection refused", away="values")


def test_an_artifact_store_that_is_away_does_not_delay_values(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    client.create_experiment("test", artifact_location=(tmp_path / "wall" / "below").as_uri())
    (tmp_path / "wall").touch()  # a file where a folder should be: every upload fails
    records = begun(tmp_path / "spool", tracking)
    records.append("artifact", to="run", file=records.keep(b"x", "a.txt"), folder="", table=False)
    records.append("metrics", to="run", step=0, values={"a": 1.0})
    end(records)
    for sent in (3, 0):
        done = deliver(tmp_path / "spool", str(tracking.uri))
        assert (done.sent, done.left, done.refused) == (sent, 1, 0)
        assert done.problem is not None and "directory" in done.problem
    assert client.get_run(ids(records).run).data.metrics == {"a": 1.0}
    (tmp_path / "wall").unlink()
    assert deliver(tmp_path / "spool", str(tracking.uri)) == Delivery(sent=1, left=0, refused=0, problem=None)
    assert [one.path for one in client.list_artifacts(ids(records).run)] == ["a.txt"]


def test_an_unreadable_line_is_reported_not_skipped(
    tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = begun(tmp_path, tracking)
    with (records.path / journal.JOURNAL).open("a") as stream:
        stream.write("{torn\n")
    end(records)
    assert deliver(tmp_path, str(tracking.uri)).refused == 1
    assert any("{torn" in message for message in caplog.messages)


def test_a_folder_without_a_journal(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tracking records there"):
        deliver(tmp_path, "http://127.0.0.1:9")


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MlflowException("x", INTERNAL_ERROR), Away),
        (MlflowException("x", INVALID_PARAMETER_VALUE), Refused),
        (MlflowException("x", PERMISSION_DENIED), Away),  # credentials can be mended; the records must not be lost
        (requests.ConnectionError("x"), Away),
        (http_error(503), Away),
        (http_error(429), Away),
        (http_error(400), Refused),
        (ConnectionRefusedError("x"), Away),
        (EndpointConnectionError(endpoint_url="http://x"), Away),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "PutObject"), Away),  # type: ignore[typeddict-item]
        (KeyError("ours"), Refused),
    ],
)
def test_kinds_of_failure(error: Exception, kind: type[Exception]) -> None:
    assert type(answers.explain(error)) is kind


def test_an_answer_that_carries_a_password_is_cleaned() -> None:
    assert "pw" not in str(answers.explain(OSError("http://me:pw@host refused")))
