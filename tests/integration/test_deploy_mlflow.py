"""The MLflow server of deploy/mlflow, started with the settings of its Deployment; the database is SQLite here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow
DEPLOY = Path(__file__).parents[2] / "deploy" / "mlflow"
IN_CLUSTER = "mlflow.mlflow.svc:5000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("server")
    _, deployment = yaml.safe_load_all((DEPLOY / "mlflow.yaml").read_text(encoding="utf-8"))
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    settings = {variable["name"]: variable["value"] for variable in container["env"] if "value" in variable}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = {"MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_HOST": "127.0.0.1"}
    environment = {**os.environ, **settings, **here, "MLFLOW_PORT": str(port), "HOME": str(folder)}
    command = [sys.executable, "-m", *container["command"]]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 120
            while status(address, "/health", "a-pod's-address") != 200:
                assert process.poll() is None and time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def status(address: str, path: str, host: str) -> int | None:
    """The HTTP status of a request under the name `host`; None where nobody listens."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address + path, headers={"Host": host}), timeout=30
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


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
