"""A cluster's pipelines, whole, in the images: with preflight, exit task, an S3 store and an MLflow server.

kfp's DockerRunner is in place of KFP and Kubernetes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import docker
import pytest
from docker.models.images import Image
from kfp import local
from mlflow import MlflowClient
from mlflow_server import mlflow_server
from moto.server import ThreadedMotoServer

from pipelines import containers, mounts
from pipelines.build import PipelineName, build
from pipelines.platform import Platform
from rest_core import config, manifest
from rest_core.ablation.ablation_report import JSON_FILE
from rest_core.ablation.settings import AblationConfig, parse_schemes
from rest_core.operations.catalogue import PIPELINE

STAGES = tuple(stage.name for stage in PIPELINE)

pytestmark = [pytest.mark.containers, pytest.mark.slow]

Services = tuple[Any, MlflowClient]
Run = Callable[..., Path]
BUCKET = "rest-pipelines"
PLATFORM = {
    "storage": {"location": f"s3://{BUCKET}/team"},
    "secrets": {"s3": "rest-s3", "mlflow": "rest-mlflow"},
}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Clients of an S3 store with two buckets, and of an MLflow server that keeps its artifacts there.

    The environment has what a cluster's Secrets give: their addresses and credentials.
    """
    store = ThreadedMotoServer("127.0.0.1", port=0)
    store.start()
    _, port = store.get_host_and_port()
    secrets = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    with pytest.MonkeyPatch.context() as environment:
        for name, value in secrets.items():
            environment.setenv(name, value)
        s3 = boto3.client("s3")
        for bucket in (BUCKET, "mlflow"):
            s3.create_bucket(Bucket=bucket)
        with mlflow_server(tmp_path_factory.mktemp("mlflow"), secrets) as address:
            environment.setenv("MLFLOW_TRACKING_URI", address)
            yield s3, MlflowClient(address)
    store.stop()


@pytest.fixture
def run(
    engine: docker.DockerClient,
    images: dict[str, Image],
    services: Services,
    tmp_path: Path,
    small_api_bank: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Run]:
    """Runs a pipeline of the profile tiny under a name; gives the folder of its tasks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_pipeline(pipeline: PipelineName, name: str, **settings: Any) -> Path:
        small_api_bank.chmod(0o755)  # pytest's folders are for their owner alone
        shape = config.load("tiny", (f"api_bank.location={small_api_bank}",))
        graph = build(shape, Platform.model_validate(PLATFORM), pipeline, **settings)
        root = tmp_path / "root"
        root.mkdir()
        local.init(containers.runner(engine, mounts.needed(shape), run=name, root=root), pipeline_root=str(root))
        graph(pipeline_run=name)
        (tasks,) = root.iterdir()
        return tasks

    before = os.umask(0)
    os.umask(before)
    mounts.share_new_files()
    yield run_pipeline
    os.umask(before)


def _keys(s3: Any, bucket: str) -> list[str]:
    return [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]


def _runs(client: MlflowClient, name: str) -> dict[str, Any]:
    """The runs below the pipeline's run, by name, all of them ended well."""
    experiment = client.get_experiment_by_name("rest")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (pipeline,) = [run for run in runs if run.info.run_name == name]
    below = {pipeline.info.run_id}
    while more := {run.info.run_id for run in runs if run.data.tags.get("mlflow.parentRunId") in below} - below:
        below |= more
    assert {run.info.status for run in runs if run.info.run_id in below} == {"FINISHED"}
    return {run.info.run_name: run for run in runs if run.info.run_id in below and run is not pipeline}


def test_one_training_from_preflight_to_the_registered_model(run: Run, services: Services) -> None:
    s3, client = services
    tasks = run("rest", "one")

    assert {path.name for path in tasks.iterdir()} == {"preflight", *STAGES, "report-status"}
    preflight = (tasks / "preflight" / "page").read_text(encoding="utf-8")
    assert preflight.startswith("# Preflight: all is there")
    assert f"s3://{BUCKET}/team is written, read and deleted from" in preflight

    # A pod hands on a manifest; what is large is in the store, and nothing temporary is left there.
    assert not list(tasks.rglob("*.safetensors")) and not list(tasks.rglob("*.arrow"))
    kept = _keys(s3, BUCKET)
    assert {key.split("/")[1] for key in kept} == {"artifacts"}
    stages = {key.split("/")[2].rpartition("-")[0] for key in kept}
    assert stages == {"prepare-data", "sft-warmup", "rest-rl"}

    runs = _runs(client, "one")
    assert set(runs) == {"preflight", *STAGES}
    version = client.get_model_version_by_alias("rest-tiny", "challenger")
    files = {Path(found.path).name for found in client.list_artifacts(version.run_id or "", "model")}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= files
    assert any(key.endswith("/model/model.safetensors") for key in _keys(s3, "mlflow"))

    status = (tasks / "report-status" / "page").read_text(encoding="utf-8")
    assert status.startswith("# ✅ succeeded")
    done = [name for name in STAGES if not name.endswith("-champion")]  # there is none yet
    assert all(f"| ✅ | {name} | FINISHED |" in status for name in ("preflight", *done))


def test_an_ablation_from_preflight_to_its_report(run: Run, services: Services) -> None:
    _, client = services
    tasks = run(
        "ablation",
        "two",
        schemes=parse_schemes(["uniform", "paper"]),
        seeds=[0],
        ablation=AblationConfig(metric="api_bank/overall_soft"),
    )
    report = json.loads((tasks / "aggregate" / "report" / JSON_FILE).read_text(encoding="utf-8"))
    schemes = report["comparisons"]["api_bank/overall_soft"]["schemes"]
    assert {name: list(scheme["values"]) for name, scheme in schemes.items()} == {"paper": ["0"], "uniform": ["0"]}
    assert "torch" not in manifest.read(tasks / "aggregate" / "report")["packages"]
    runs = _runs(client, "two")
    trained = {name: run for name, run in runs.items() if run.data.params.get("cfg/rl/weights/scheme")}
    assert {run.data.params["cfg/rl/weights/scheme"] for run in trained.values()} == {"uniform", "paper"}
    status = (tasks / "report-status" / "page").read_text(encoding="utf-8")
    assert status.startswith("# ✅ succeeded")
    assert "| ✅ | rest-rl · paper · seed 0 | FINISHED |" in status
