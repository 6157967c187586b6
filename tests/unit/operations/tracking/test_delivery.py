"""Delivery into a real MLflow store on SQLite, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import requests
from botocore.exceptions import ClientError, EndpointConnectionError
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, PERMISSION_DENIED

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.tracking import delivery, spool
from rest_core.operations.tracking.delivery import KIND_TAG, PIPELINE_RUN_TAG, Away, Courier, Rejected, deliver
from rest_core.operations.tracking.spool import RunIds, Spool, State


def begin(tracking: TrackingConfig, stage: str = "train", kind: str = "stage", **more: Any) -> dict[str, Any]:
    return {
        "kind": kind,
        "uri": tracking.uri,
        "experiment": "test",
        "pipeline_run": "p",
        "stage": stage,
        "join": None,
        "pipeline_tags": {KIND_TAG: "pipeline", PIPELINE_RUN_TAG: "p"},
        "tags": {KIND_TAG: "stage"},
        **more,
    }


def end(journal: Spool, error: str | None = None) -> None:
    status = "FAILED" if error else "FINISHED"
    journal.append("end", status=status, error=error, stage=begin_of(journal)["stage"])


def begin_of(journal: Spool) -> dict[str, Any]:
    return [r for r, _ in spool.read_records(journal.folder) if r["op"] == "begin"][-1]


def all_runs(client: MlflowClient) -> list[Run]:
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def ids(journal: Spool) -> RunIds:
    return State.read(journal.folder).sections[str(journal.section)]


def test_original_times_and_steps_arrive_in_a_nested_run(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    journal = Spool(tmp_path / "spool", begin(tracking))
    for step in (1, 2):
        journal.append("metrics", to="run", step=step, values={"loss": step / 2, "odd": "nan"}, time=1000 + step)
    journal.append("metrics", to="pipeline", step=0, values={"bfcl/overall": 0.5})
    end(journal)
    assert deliver(tmp_path) == delivery.Delivery(sent=5, left=0, rejected=0, problem=None)
    runs = ids(journal)
    assert [(m.value, m.step, m.timestamp) for m in client.get_metric_history(runs.run, "loss")] == [
        (0.5, 1, 1001),
        (1.0, 2, 1002),
    ]
    assert len(client.get_metric_history(runs.run, "odd")) == 2  # MLflow keeps NaN
    run, parent = client.get_run(runs.run), client.get_run(runs.pipeline)
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (run.info.run_name, run.info.status) == ("train", "FINISHED")
    assert (parent.info.run_name, parent.info.status) == ("p", "RUNNING")
    assert parent.data.metrics == {"bfcl/overall": 0.5}


def test_sending_everything_twice_changes_nothing(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    journal = Spool(tmp_path, begin(tracking))
    journal.append("params", to="run", values={"cfg/a": "1"})
    journal.append("metrics", to="run", step=1, values={"loss": 1.0})
    journal.append("dataset", name="d", source="s", source_type="local", digest="f" * 36, rows=3, context="training")
    deliver(tmp_path)
    state = State.read(tmp_path)
    State().write(tmp_path)  # as if the process had died before it noted what was sent
    deliver(tmp_path)
    assert State.read(tmp_path) == state
    assert len(all_runs(client)) == 2
    run = client.get_run(ids(journal).run)
    assert len(client.get_metric_history(run.info.run_id, "loss")) == 1
    assert run.inputs is not None
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest, dataset.tags[0].value) == ("d", "f" * 36, "training")


def test_a_second_stage_finds_the_parent_and_a_second_attempt_is_a_new_run(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    first = Spool(tmp_path / "a", begin(tracking, "prepare"))
    end(first)
    second = Spool(tmp_path / "b", begin(tracking))
    end(second, "boom")
    deliver(tmp_path)
    assert ids(first).pipeline == ids(second).pipeline
    parent = client.get_run(ids(first).pipeline)
    assert (parent.info.status, parent.data.tags["rest.error/train"]) == ("FAILED", "boom")
    assert client.get_run(ids(second).run).data.tags["rest.error"] == "boom"

    again = Spool(tmp_path / "b", begin(tracking))
    end(again)
    deliver(tmp_path)
    parent = client.get_run(ids(first).pipeline)
    assert (parent.info.status, "rest.error/train" in parent.data.tags) == ("RUNNING", False)
    assert client.get_run(ids(again).run).info.run_name == "train (attempt 2)"


@pytest.mark.parametrize(("error", "status"), [(None, "FINISHED"), ("boom", "FAILED")])
def test_finishing_does_not_hide_a_failed_stage(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, error: str | None, status: str
) -> None:
    end(Spool(tmp_path / "a", begin(tracking)), error)
    last = Spool(tmp_path / "b", begin(tracking, "finish", kind="pipeline"))
    end(last)
    deliver(tmp_path)
    assert client.get_run(ids(last).pipeline).info.status == status
    assert len(all_runs(client)) == 2


def test_a_given_run_is_joined_and_left_open(tracking: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    experiment = client.create_experiment("kfp")
    outer = client.create_run(experiment).info.run_id
    inner = client.create_run(experiment, tags={"mlflow.parentRunId": outer}).info.run_id
    journal = Spool(tmp_path / "a", begin(tracking, join=inner))
    journal.append("metrics", to="pipeline", step=0, values={"x": 1})
    end(journal, "boom")
    finish = Spool(tmp_path / "b", begin(tracking, "finish", kind="pipeline", join=inner))
    end(finish)
    deliver(tmp_path)
    assert (ids(journal).run, ids(journal).pipeline) == (inner, outer)
    for run_id in (inner, outer):
        assert client.get_run(run_id).info.status == "RUNNING"
    assert client.get_run(outer).data.metrics == {"x": 1}
    assert client.get_run(inner).data.tags["rest.error"] == "boom"


def test_a_given_run_without_a_parent_becomes_the_parent(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    """Two stages under one given run: each has a run of its own, so that neither overwrites the other's artifacts."""
    given = client.create_run(client.create_experiment("own")).info.run_id
    one, two = (Spool(tmp_path / name, begin(tracking, name, join=given)) for name in ("a", "b"))
    end(one)
    end(two)
    deliver(tmp_path)
    assert ids(one).pipeline == ids(two).pipeline == given
    assert len({ids(one).run, ids(two).run, given}) == 3
    assert client.get_run(ids(one).run).data.tags["mlflow.parentRunId"] == given
    assert client.get_run(ids(one).run).info.status == "FINISHED"
    assert client.get_run(given).info.status == "RUNNING"  # whoever made it ends it


def test_a_stage_that_was_killed_with_its_sender_is_closed_by_the_next_delivery(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    journal = Spool(tmp_path, begin(tracking))
    deliver(tmp_path)
    assert client.get_run(ids(journal).run).info.status == "KILLED"


def test_one_conflicting_param_does_not_reject_the_others(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    journal = Spool(tmp_path, begin(tracking))
    journal.append("params", to="run", values={"cfg/a": "1"})
    journal.append("params", to="run", values={"cfg/a": "2", "cfg/b": "3"})
    journal.append("metrics", to="run", step=0, values={"after": 1.0})
    done = deliver(tmp_path)
    assert (done.left, done.rejected) == (0, 1)
    run = client.get_run(ids(journal).run)
    assert run.data.params == {"cfg/a": "1", "cfg/b": "3"}
    assert run.data.metrics == {"after": 1.0}
    (entry,) = spool.read_rejected(tmp_path)
    assert "cfg/a" in entry["answer"]
    assert entry["record"]["values"] == {"cfg/a": "2", "cfg/b": "3"}


def test_a_bad_metric_is_put_aside_without_its_neighbours_and_sync_tries_it_again(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    journal = Spool(tmp_path, begin(tracking))
    for name in ("good", "b@d", "fine"):
        journal.append("metrics", to="run", step=0, values={name: 1.0})
    assert deliver(tmp_path).rejected == 1
    assert set(client.get_run(ids(journal).run).data.metrics) == {"good", "fine"}
    (entry,) = spool.read_rejected(tmp_path)
    entry["record"]["values"] = {"mended": 1.0}
    spool.write_rejected(tmp_path, [entry])
    assert deliver(tmp_path).complete
    assert "mended" in client.get_run(ids(journal).run).data.metrics


def test_more_metrics_than_a_call_takes(tracking: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    journal = Spool(tmp_path, begin(tracking))
    for step in range(3):
        journal.append("metrics", to="run", step=step, values={f"m{i}": float(step) for i in range(700)})
    assert deliver(tmp_path).complete
    metrics = client.get_run(ids(journal).run).data.metrics
    assert len(metrics) == 700
    assert set(metrics.values()) == {2.0}


def test_a_table_is_one_to_mlflow_and_its_copy_is_gone(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking.uri is not None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.uri)  # load_table ignores its client's
    journal = Spool(tmp_path / "spool", begin(tracking))
    kept = journal.keep_bytes(b'{"columns": ["a"], "data": [[1], [2]]}', "t.json")
    journal.append("table", to="run", file=kept, folder="tables")
    assert deliver(tmp_path).complete
    frame = client.load_table(client.get_run(ids(journal).run).info.experiment_id, artifact_file="tables/t.json")
    assert list(frame["a"]) == [1, 2]
    assert list((tmp_path / "spool" / "files").iterdir()) == []


def test_a_server_that_is_away_keeps_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    journal = Spool(tmp_path, begin(TrackingConfig(uri="http://127.0.0.1:9")))
    journal.append("metrics", to="run", step=0, values={"a": 1.0})
    end(journal)
    done = deliver(tmp_path)
    assert (done.sent, done.left, done.rejected) == (0, 3, 0)
    assert done.problem == "http://127.0.0.1:9: connection refused"


def test_an_artifact_store_that_is_down_does_not_hold_up_the_figures(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    experiment = client.create_experiment("test", artifact_location=(tmp_path / "wall" / "below").as_uri())
    assert experiment
    (tmp_path / "wall").touch()  # a file where a folder should be: every upload fails
    journal = Spool(tmp_path / "spool", begin(tracking))
    kept = journal.keep_bytes(b"x", "a.txt")
    journal.append("artifact", to="run", file=kept, folder="")
    journal.append("metrics", to="run", step=0, values={"a": 1.0})
    courier = Courier(tmp_path / "spool")
    outcomes = [courier.run() for _ in range(3)]
    assert [one.left for one in outcomes] == [2, 2, 0]
    assert outcomes[-1].rejected == 1
    assert client.get_run(ids(journal).run).data.metrics == {"a": 1.0}
    (tmp_path / "wall").unlink()
    assert deliver(tmp_path / "spool").complete  # the copy was still there
    assert [one.path for one in client.list_artifacts(ids(journal).run)] == ["a.txt"]


def test_an_unreadable_line_is_reported_not_skipped(tracking: TrackingConfig, tmp_path: Path) -> None:
    journal = Spool(tmp_path, begin(tracking))
    with (tmp_path / spool.JOURNAL).open("a") as stream:
        stream.write("{torn\n")
    end(journal)
    assert deliver(tmp_path).rejected == 1
    assert spool.read_rejected(tmp_path)[0]["record"]["text"] == "{torn"


def test_a_folder_without_spool(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tracking records there"):
        deliver(tmp_path)


def http_error(status: int) -> requests.HTTPError:
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MlflowException("x", INTERNAL_ERROR), Away),
        (MlflowException("x", INVALID_PARAMETER_VALUE), Rejected),
        (MlflowException("x", PERMISSION_DENIED), Away),  # credentials can be mended; the records must not be lost
        (requests.ConnectionError("x"), Away),
        (http_error(503), Away),
        (http_error(429), Away),
        (http_error(400), Rejected),
        (ConnectionRefusedError("x"), Away),
        (EndpointConnectionError(endpoint_url="http://x"), Away),
        (ClientError({"ResponseMetadata": {"HTTPStatusCode": 404}}, "PutObject"), Rejected),  # type: ignore[typeddict-item]
        (KeyError("ours"), Rejected),
    ],
)
def test_kinds_of_failure(error: Exception, kind: type[Exception]) -> None:
    assert type(delivery.explain(error)) is kind


def test_an_answer_that_carries_a_password_is_cleaned() -> None:
    assert "pw" not in str(delivery.explain(OSError("http://me:pw@host refused")))
