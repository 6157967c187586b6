"""MLflow that takes everything, and the ways in which it does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from rest_core.config import Config, RegistryConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.preflight import mlflow_server
from rest_core.operations.preflight.surroundings import Mount, Surroundings
from rest_core.operations.tracking import store


def test_what_is_tried_out_is_deleted(tracking: TrackingConfig, tmp_path: Path) -> None:
    mlflow_server.try_out(tracking, str(tracking.uri))
    client = store.open_client(str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    assert client.search_runs([experiment.experiment_id]) == []
    (deleted,) = client.search_runs([experiment.experiment_id], run_view_type=ViewType.DELETED_ONLY)
    assert deleted.data.metrics == {"preflight": 1.0}
    assert not [path for path in (tmp_path / "mlruns" / "artifacts").rglob("*") if path.is_file()]


def test_what_may_not_be_deleted_stays_and_is_told(
    tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise MlflowException("no MANAGE here", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(MlflowClient, "delete_run", refuse)
    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuse)
    file, run = mlflow_server.try_out(tracking, str(tracking.uri))
    assert file.startswith("the file preflight.txt of this check stays (") and "no MANAGE here" in file
    assert run.startswith("the run preflight of this check stays (")


def test_a_store_on_the_pods_own_disk_is_refused(tracking: TrackingConfig) -> None:
    with pytest.raises(UserError, match=r"each pod's own disk; set tracking\.uri"):
        mlflow_server.check(Config(tracking=tracking), Surroundings())


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 does not answer"):
        mlflow_server.check(Config(tracking=TrackingConfig(uri="http://127.0.0.1:1")), Surroundings())


def test_a_server_that_refuses_says_what_it_refused(http_server: Callable[..., str]) -> None:
    def answer(path: str, _: dict[str, str]) -> tuple[int, Any]:
        return (200, "OK") if path == "/health" else (403, {"error_code": "PERMISSION_DENIED", "message": "not you"})

    uri = http_server(answer)
    with pytest.raises(UserError, match=rf"^MLflow at {uri} did not open the experiment: .*not you"):
        mlflow_server.check(Config(tracking=TrackingConfig(uri=uri)), Surroundings())


def test_an_artifact_store_that_cannot_be_written(tracking: TrackingConfig) -> None:
    client = store.open_client(str(tracking.uri))
    client.create_experiment(tracking.experiment, artifact_location="file:///sys/rest-preflight")
    with pytest.raises(UserError, match="did not store a file"):
        mlflow_server.try_out(tracking, str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None and client.search_runs([experiment.experiment_id]) == []


WORK = Surroundings(mounts=(Mount(claim="work", path="/work"),))


def experiment_at(location: str) -> Callable[[str, dict[str, str]], tuple[int, Any]]:
    """A server whose experiment has its artifacts there, and which refuses to make a run."""

    def answer(path: str, _: dict[str, str]) -> tuple[int, Any]:
        if path.endswith(("experiments/get-by-name", "experiments/get")):
            return 200, {"experiment": {"experiment_id": "1", "name": "rest", "artifact_location": location}}
        return (200, "OK") if path == "/health" else (403, {"error_code": "PERMISSION_DENIED", "message": "no runs"})

    return answer


@pytest.mark.parametrize("location", ["/tmp/x/art/1", "file:///tmp/x/art/1", "./mlruns/1", "/workshop/1"])
def test_an_experiment_with_artifacts_on_the_pods_disk_is_refused(
    http_server: Callable[..., str], location: str
) -> None:
    uri = http_server(experiment_at(location))
    with pytest.raises(UserError, match=r"^MLflow's experiment 'rest' .*--serve-artifacts") as told:
        mlflow_server.check(Config(tracking=TrackingConfig(uri=uri)), WORK)
    assert location in str(told.value)


@pytest.mark.parametrize("location", ["mlflow-artifacts:/1", "s3://bucket/1", "/work/1", "file:///work/1"])
def test_an_experiment_with_artifacts_elsewhere_is_taken(http_server: Callable[..., str], location: str) -> None:
    uri = http_server(experiment_at(location))
    with pytest.raises(UserError, match=r"did not create a run: .*no runs"):
        mlflow_server.check(Config(tracking=TrackingConfig(uri=uri)), WORK)


def test_a_pod_makes_no_experiment_in_a_database(
    tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with postgresql://: its artifacts would be in the pod's working folder."""
    monkeypatch.chdir(tmp_path)  # a checkout may itself lie below WORK
    monkeypatch.setattr(store, "is_local", lambda uri: False)
    with pytest.raises(UserError, match=r"is a database without a server, and has no experiment"):
        mlflow_server.check(Config(tracking=tracking), WORK)
    client = store.open_client(str(tracking.uri))
    assert client.get_experiment_by_name(tracking.experiment) is None
    client.create_experiment(tracking.experiment, artifact_location="./mlruns/1")
    with pytest.raises(UserError, match=r"has its artifacts at .*mlruns/1, which is each pod's own disk"):
        mlflow_server.check(Config(tracking=tracking), WORK)


def test_rights_on_the_model_are_asked_for_without_a_change(
    tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, registry = store.open_client(str(tracking.uri)), RegistryConfig(name="mine")
    mlflow_server.check_rights(client, registry)  # it is made when the first version is registered
    client.create_registered_model("mine", description="as it was")
    before = dict(client.get_registered_model("mine"))
    mlflow_server.check_rights(client, registry)
    assert dict(client.get_registered_model("mine")) == before


def test_a_model_that_may_only_be_read_is_told(http_server: Callable[..., str]) -> None:
    """Answers as of MLflow's basic-auth for an account with READ."""
    asked = []

    def answer(path: str, _: dict[str, str]) -> tuple[int, Any]:
        asked.append(path)
        if path.endswith("registered-models/get"):
            return 200, {"registered_model": {"name": "mine"}}
        return 403, "Permission denied"

    client = store.open_client(http_server(answer))
    with pytest.raises(UserError, match=r"^the registered model 'mine' is there, .* may not add versions"):
        mlflow_server.check_rights(client, RegistryConfig(name="mine"))
    assert asked[-1].endswith("model-versions/update")
