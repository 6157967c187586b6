"""The MLflow server of deploy/mlflow, started with the settings of its Deployment; the database is SQLite here."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow_server import mlflow_server, status

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import journal, runs, store
from rest_core.operations.tracking.journal import State
from rest_core.operations.tracking.recorder import Measured

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


def test_a_stage_records_models_prompts_and_traces_on_it(tmp_path: Path) -> None:
    answer = {
        "id": "a_1",
        "category": "a",
        "valid": True,
        "kind": None,
        "error_type": None,
        "error": None,
        "question": [{"role": "user", "content": "Weather?"}],
        "expected": [],
        "calls": [],
        "response": "Sunny.",
        "prompt_tokens": 3,
        "response_tokens": 2,
        "seconds": 0.1,
        "skipped": None,
        "tools": [],
    }
    artifacts = {"MLFLOW_DEFAULT_ARTIFACT_ROOT": str(tmp_path / "artifacts")}  # here is no bucket
    with mlflow_server(tmp_path, artifacts) as server:
        tracking, spool = TrackingConfig(uri=server, experiment="traces"), tmp_path / "spool"
        with runs.stage_run(tracking, stage="evaluate", pipeline_run="p", spool=spool, parameters={}) as run:
            run.made_model("a" * 64, "rest-rl")
            run.prompt("rest-toolrl", "Call {{ tools }}.")
            of = Measured("a" * 64, "rest-rl", "bfcl", "b" * 64, ("bfcl/call_accuracy",))
            run.summary({"bfcl/call_accuracy": 0.5}, of=of)
            run.answers([answer], ("valid",))
            run.wait(60)
            run_id = run.run_id
        (path,) = journal.find(spool)
        assert run_id is not None and State.read(path).refused == 0
        client = store.open_client(server)
        done = client.get_run(run_id)
        experiment = done.info.experiment_id
        (model,) = client.search_logged_models([experiment])
        assert model.metrics[0].value == 0.5
        assert "rest-toolrl" in done.data.tags["mlflow.linkedPrompts"]
        (trace,) = client.search_traces(locations=[experiment], run_id=run_id)
        assert trace.data.spans[0].outputs["response"] == "Sunny."
        assert {one.name for one in trace.info.assessments} == {"valid", "expected"}
