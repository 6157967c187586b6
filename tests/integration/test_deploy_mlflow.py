"""The MLflow server of deploy/mlflow, started with the settings of its Deployment; the database is SQLite here."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator

import pytest
from mlflow_server import mlflow_server, status

pytestmark = pytest.mark.slow
IN_CLUSTER = "mlflow.mlflow.svc:5000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with mlflow_server(tmp_path_factory.mktemp("server"), {}) as address:
        yield address


def test_pods_reach_it_and_nobody_under_another_name(server: str) -> None:
    path = "/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert status(server, path, IN_CLUSTER) == 200
    assert status(server, path, "mlflow:5000") == 200
    assert status(server, path, "elsewhere.example.com") == 403
    assert status(server, "/health", "10.1.2.3:5000") == 200  # as the kubelet asks


def test_artifacts_go_to_the_bucket_and_not_through_the_server(server: str) -> None:
    path = "/api/2.0/mlflow/experiments/create"
    headers = {"Host": IN_CLUSTER, "Content-Type": "application/json"}
    body = json.dumps({"name": "test"}).encode()
    with urllib.request.urlopen(urllib.request.Request(server + path, body, headers), timeout=30) as answer:
        made = json.load(answer)["experiment_id"]
    path = f"/api/2.0/mlflow/experiments/get?experiment_id={made}"
    with urllib.request.urlopen(urllib.request.Request(server + path, headers=headers), timeout=30) as answer:
        location = json.load(answer)["experiment"]["artifact_location"]
    assert location.startswith("s3://mlflow/artifacts")
    assert status(server, "/api/2.0/mlflow-artifacts/artifacts", IN_CLUSTER) != 200
