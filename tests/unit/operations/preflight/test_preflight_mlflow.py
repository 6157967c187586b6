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

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.preflight import mlflow_server
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
        mlflow_server.check(tracking)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1 does not answer"):
        mlflow_server.check(TrackingConfig(uri="http://127.0.0.1:1"))


def test_a_server_that_refuses_says_what_it_refused(http_server: Callable[..., str]) -> None:
    def answer(path: str, _: dict[str, str]) -> tuple[int, Any]:
        return (200, "OK") if path == "/health" else (403, {"error_code": "PERMISSION_DENIED", "message": "not you"})

    uri = http_server(answer)
    with pytest.raises(UserError, match=rf"^MLflow at {uri} did not open the experiment: .*not you"):
        mlflow_server.check(TrackingConfig(uri=uri))


def test_an_artifact_store_that_cannot_be_written(tracking: TrackingConfig) -> None:
    client = store.open_client(str(tracking.uri))
    client.create_experiment(tracking.experiment, artifact_location="file:///sys/rest-preflight")
    with pytest.raises(UserError, match="did not store a file"):
        mlflow_server.try_out(tracking, str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None and client.search_runs([experiment.experiment_id]) == []
