"""The TrainJob that a stage makes: really sent by the SDK, to a server in the role of the Kubernetes API."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("kubeflow.trainer", reason="the package kubeflow is not installed")

from kubeflow.common.types import KubernetesBackendConfig
from kubeflow.trainer import TrainerClient
from kubernetes.client import ApiClient, Configuration, CoreV1Api
from trainer_api import NAMESPACE, TRAINER, Cluster, serve

from pipelines.nodes import launch_on
from pipelines.platform import Platform
from rest_core import manifest, storage
from rest_core.config import (
    LaunchConfig,
    ModelConfig,
    RlConfig,
    StorageConfig,
    TrackingConfig,
    TrainJobConfig,
)
from rest_core.errors import Preempted, UserError
from rest_core.operations import handoff, pods
from rest_core.operations.launch import train_job, trainer
from rest_core.operations.launch.job import Job
from rest_core.operations.names import run_label

PLATFORM = {
    "namespace": NAMESPACE,
    "images": {"train": "registry/rest-pipelines-train@sha256:" + "1" * 64, "pull_secrets": ["pull"]},
    "service_account": "rest-pipeline",
    "labels": {"team": "tools"},
    "annotations": {"sidecar.istio.io/inject": "false"},
    "volumes": {"model_cache": {"claim": "rest-model-cache", "path": "/cache"}},
    "train_jobs": {"deadline_seconds": 3600},
    "stages": {
        "default": {"node_selector": {"pool": "cpu"}},
        "rest_rl": {
            "nodes": 2,
            "cpu": "16",
            "memory": "128Gi",
            "gpu": {"count": 8},
            "shm_size": "32Gi",
            "node_selector": {"pool": "h100"},
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        },
    },
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setattr(trainer, "_POLL_SECONDS", 0.05)
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with serve() as running:
        yield running


@pytest.fixture
def client(cluster: Cluster) -> TrainerClient:
    configuration = Configuration(host=cluster.url)
    configuration.retries = 0
    return TrainerClient(KubernetesBackendConfig(namespace=NAMESPACE, client_configuration=configuration))


class Stage:
    """A stage rest-rl with its inputs, and the nodes that would train."""

    def __init__(self, folder: Path) -> None:
        self.location = str(folder / "volume")
        self.dataset, self.policy, self.out = folder / "dataset", folder / "policy", folder / "out"
        for made, file in ((self.dataset, "dataset_dict.json"), (self.policy, "config.json")):
            made.mkdir()
            (made / file).write_text("{}")
            manifest.write(made, stage="test", config={}, inputs={}, counts={})
        self.launch = launch_on(Platform.model_validate(PLATFORM), LaunchConfig(sharding="fsdp2"))
        self.rl = RlConfig(steps=2)

    def run(self, client: TrainerClient) -> Any:
        sections = {
            "model": ModelConfig(),
            "rl": self.rl,
            "tracking": TrackingConfig(uri="http://mlflow:5000"),
            "storage": StorageConfig(location=self.location),
        }
        job = Job.of("rest-rl", sections, {"dataset": self.dataset, "policy": self.policy}, "run 1")
        return train_job.run(job, out=self.out, launch=self.launch, client=client)

    def train(self, body: dict[str, Any]) -> None:
        """What the first process leaves at the end: the stage's folder, by reference."""
        job = Job.read(described(body))
        made = Path(self.location).parent / "trained"
        made.mkdir(exist_ok=True)
        (made / "model.safetensors").write_bytes(b"weights")
        (made / "metrics.json").write_text('{"rl/steps": 2.0}')
        files = manifest.contents(made)
        manifest.write(made, stage="rest-rl", config={}, inputs={}, counts={}, files=files)
        handoff.deliver(made, self.location, "rest-rl", files)
        for path in made.iterdir():
            storage.put_file(path, f"{job.result}/{path.name}")


@pytest.fixture
def stage(tmp_path: Path, cluster: Cluster) -> Stage:
    made = Stage(tmp_path)
    cluster.on_create = made.train
    return made


def described(body: dict[str, Any]) -> str:
    """Where the job's description lies, from the script that a shell would write: it passes through one here."""
    script = body["spec"]["trainer"]["command"][2].split("torchrun")[0]
    with_shell = subprocess.run(
        ["bash", "-c", script + 'true "x"; cat train_on_node.py'],
        capture_output=True,
        text=True,
        check=True,
        cwd=os.environ["TMPDIR"],
    )
    call = with_shell.stdout.strip().splitlines()[-1]
    assert call.startswith("train_on_node(**{'job': ")
    compile(with_shell.stdout, "train_on_node.py", "exec")
    return call.split("'")[3]


@pytest.fixture(autouse=True)
def _working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_train_job_says_what_the_platform_asks_for(client: TrainerClient, cluster: Cluster, stage: Stage) -> None:
    stage.run(client)
    (made,) = cluster.created
    assert made["apiVersion"] == "trainer.kubeflow.org/v1alpha1" and made["kind"] == "TrainJob"
    labels = {"team": "tools", **run_label("run 1")}
    assert made["metadata"]["labels"] == labels
    spec = made["spec"]
    assert spec["runtimeRef"] == {"name": "rest-torch", "kind": "TrainingRuntime"}
    assert spec["activeDeadlineSeconds"] == 3600
    node = spec["trainer"]
    assert node["numNodes"] == 2
    assert node["image"] == PLATFORM["images"]["train"]  # type: ignore[index]
    asked = {"cpu": "16", "memory": "128Gi", "nvidia.com/gpu": "8"}
    assert node["resourcesPerNode"] == {"limits": asked, "requests": asked}
    assert "torchrun" in node["command"][2]
    environment = {variable["name"]: variable["value"] for variable in node["env"]}
    assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    assert environment["HF_HOME"] == "/cache/huggingface" and environment["XDG_CACHE_HOME"] == "/cache"
    assert not any(name.startswith("PET_") for name in environment)  # Kubeflow Trainer's own
    (patch,) = spec["runtimePatches"]
    (job,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    assert job["name"] == "node"
    template = job["template"]["spec"]["template"]
    assert template["metadata"] == {"labels": labels, "annotations": {"sidecar.istio.io/inject": "false"}}
    pod = template["spec"]
    assert pod["serviceAccountName"] == "rest-pipeline"
    assert pod["imagePullSecrets"] == [{"name": "pull"}]
    assert pod["nodeSelector"] == {"pool": "h100"}
    assert pod["tolerations"] == [{"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"}]
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["volumes"] == [
        {"name": "model-cache", "persistentVolumeClaim": {"claimName": "rest-model-cache"}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "32Gi"}},
    ]
    # No variables: Kubeflow Trainer refuses a patch with them for this container.
    restricted = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    mounts = [{"mountPath": "/cache", "name": "model-cache"}]
    assert pod["containers"] == [{"name": "node", "volumeMounts": mounts, "securityContext": restricted}]


def test_inputs_go_by_reference_and_the_result_comes_back(
    client: TrainerClient, cluster: Cluster, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    result = stage.run(client)
    assert result.metrics == {"rl/steps": 2.0} and result.skipped is None
    assert {path.name for path in stage.out.iterdir()} == {"reference.json", "manifest.json", "metrics.json"}
    assert (handoff.fetch(stage.out) / "model.safetensors").read_bytes() == b"weights"
    job = Job.read(described(cluster.created[0]))
    dataset, policy = job.inputs["dataset"], job.inputs["policy"]
    assert isinstance(dataset, handoff.Pointer) and isinstance(policy, handoff.Pointer)
    assert dataset.source.startswith(f"{stage.location}/artifacts/dataset-")
    assert (Path(policy.source) / "config.json").is_file()
    assert cluster.deleted == [job.name] and cluster.jobs == {}
    lines = [record.message for record in caplog.records if " | " in record.message]
    assert lines == [f"{job.name} | step 1", f"{job.name} | step 2"]  # each once


def test_a_stage_that_is_tried_again_follows_the_job_that_is_there(
    client: TrainerClient, cluster: Cluster, stage: Stage
) -> None:
    cluster.on_create = lambda _: None
    stopped = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGTERM))
    endless = cluster.job
    cluster.job = lambda name: {k: v for k, v in cluster.jobs[name].items() if k != "asked"}  # type: ignore[method-assign]
    stopped.start()
    with pytest.raises(Preempted, match=r"SIGTERM: TrainJob rest-rl-.* continues") as told:
        stage.run(client)
    assert told.value.exit_code == 75
    assert len(cluster.jobs) == 1 and cluster.deleted == []

    def end(name: str) -> dict[str, Any]:
        stage.train(cluster.jobs[name])
        return endless(name)

    cluster.job = end  # type: ignore[method-assign]
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    assert len(cluster.created) == 1 and cluster.jobs == {}


def test_a_result_that_is_there_is_not_trained_again(client: TrainerClient, cluster: Cluster, stage: Stage) -> None:
    first = stage.run(client)
    # The stage was lost before it had deleted its TrainJob.
    name = cluster.created[0]["metadata"]["name"]
    cluster.jobs[name] = {**cluster.created[0], "asked": 9}
    assert stage.run(client) == first
    assert len(cluster.created) == 1 and cluster.jobs == {}


def test_another_training_is_another_job(client: TrainerClient, cluster: Cluster, stage: Stage) -> None:
    stage.run(client)
    stage.rl = RlConfig(steps=2, seed=1)
    stage.run(client)
    assert len({job["metadata"]["name"] for job in cluster.created}) == 2


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("error: process 1: reward function f: a reward of nan", "process 1: reward function f: a reward of nan"),
        ("\x1b[31m\x1b[1merror:\x1b[0m rl.steps: too many", "rl.steps: too many"),
        ("Killed", "none of its nodes reported an error"),
    ],
)
def test_a_failure_is_told_in_one_line_and_tried_again_anew(
    client: TrainerClient, cluster: Cluster, stage: Stage, line: str, told: str
) -> None:
    cluster.outcome, cluster.logs = "Failed", ["step 1", line, "torchrun's report"]
    cluster.on_create = lambda _: None
    with pytest.raises(UserError, match=f"TrainJob rest-rl-[0-9a-f]{{12}} failed: {told}"):
        stage.run(client)
    assert len(cluster.deleted) == 1
    # One that failed while nobody watched is replaced.
    cluster.jobs[cluster.created[0]["metadata"]["name"]] = {**cluster.created[0], "asked": 9}
    cluster.on_create = stage.train

    def succeed(body: dict[str, Any]) -> None:
        cluster.outcome = "Complete"
        stage.train(body)

    cluster.on_create = succeed
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    assert len(cluster.created) == 2


@pytest.mark.parametrize(
    ("reason", "told"),
    # One that was queued for long is not late: its deadline counts from its start.
    [("DeadlineExceeded", "its deadline of 3600 s was over"), ("JobSetFailed", "failed: no memory")],
)
def test_a_deadline_is_told_where_it_was_one(
    client: TrainerClient, cluster: Cluster, stage: Stage, reason: str, told: str
) -> None:
    cluster.outcome, cluster.reason, cluster.logs = "Failed", reason, ["error: no memory"]

    def made_long_ago(body: dict[str, Any]) -> None:
        cluster.jobs[body["metadata"]["name"]]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"

    cluster.on_create = made_long_ago
    with pytest.raises(UserError, match=told):
        stage.run(client)


@pytest.mark.parametrize("status", [500, 403])
def test_a_training_that_is_done_is_done_where_its_job_cannot_be_deleted(
    client: TrainerClient,
    cluster: Cluster,
    stage: Stage,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(trainer, "_PATIENCE_SECONDS", 0.1)
    cluster.fail += [(f"DELETE {TRAINER}/trainjobs/", status)] * 100
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    assert "stays until the run's exit task deletes it" in caplog.text


def test_a_job_whose_making_was_not_answered_is_followed(client: TrainerClient, cluster: Cluster, stage: Stage) -> None:
    def lose_the_answer(body: dict[str, Any]) -> None:
        stage.train(body)
        raise ConnectionResetError

    cluster.on_create = lose_the_answer
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    assert len(cluster.created) == 1


def test_an_api_that_fails_before_the_training_is_asked_again(
    client: TrainerClient, cluster: Cluster, stage: Stage
) -> None:
    names = ("GET {}/trainjobs/", "GET {}/trainingruntimes", "POST {}/trainjobs", "DELETE {}/trainjobs/")
    cluster.fail = [(name.format(TRAINER), 503) for name in names]
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    assert cluster.fail == [] and cluster.jobs == {}


def test_an_api_that_fails_for_a_while_is_asked_again(client: TrainerClient, cluster: Cluster, stage: Stage) -> None:
    def fail(body: dict[str, Any]) -> None:
        cluster.fail += [(f"GET {TRAINER}/trainjobs/", 503), (f"GET {TRAINER}/trainingruntimes", 500)]
        stage.train(body)

    cluster.on_create = fail
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    assert cluster.fail == []


def test_a_log_that_cannot_be_read_ends_nothing(
    client: TrainerClient, cluster: Cluster, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.fail += [("GET /api/v1/namespaces/team/pods/", 404)]
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    assert any("log of node-0" in record.message and "is not there" in record.message for record in caplog.records)


def test_whatever_a_node_prints_decides_nothing(
    client: TrainerClient, cluster: Cluster, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    cluster.logs = [b"half a sign \xe2\x82", b"1 %\r2 %", '{"json": true}']
    assert stage.run(client).metrics == {"rl/steps": 2.0}
    lines = [record.message.partition(" | ")[2] for record in caplog.records if " | " in record.message]
    assert lines == ["half a sign \ufffd", "1 %", "2 %", '{"json": true}']
    assert all(query["tailLines"] == ["1000"] for query in cluster.log_reads)  # a log may be long


def test_an_address_with_credentials_stays_in_its_secret(
    client: TrainerClient, cluster: Cluster, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def given() -> dict[str, str]:
        stage.run(client)
        stage.rl = stage.rl.model_copy(update={"seed": stage.rl.seed + 1})  # another job the next time
        made = {one["name"]: one["value"] for one in cluster.created[-1]["spec"]["trainer"]["env"]}
        return {name: value for name, value in made.items() if name.startswith("MLFLOW")}

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://user:hush@mlflow.example")
    assert given() == {}
    monkeypatch.setenv("MLFLOW_RUN_ID", "0f")
    assert given() == {"MLFLOW_RUN_ID": "0f"}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert given() == {"MLFLOW_RUN_ID": "0f", "MLFLOW_TRACKING_URI": "https://mlflow.example"}


def test_an_api_that_stays_away_is_told(
    client: TrainerClient, cluster: Cluster, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "_PATIENCE_SECONDS", 0.2)
    cluster.on_create = lambda _: cluster.fail.extend([(f"GET {TRAINER}/trainjobs/", 503)] * 100)
    with pytest.raises(UserError, match="the Kubernetes API failed \\(503"):
        stage.run(client)


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        (f"POST {TRAINER}/trainjobs", 403, "the cluster refuses it \\(403 .*deploy/base/service-account.yaml"),
        (f"GET {TRAINER}/trainingruntimes", 403, "TrainingRuntime rest-torch: the cluster refuses it \\(403"),
        (f"POST {TRAINER}/trainjobs", 404, "is not there; install Kubeflow Trainer"),
        (f"POST {TRAINER}/trainjobs", 422, "the cluster refuses it \\(422 .*refused"),
    ],
)
def test_what_the_api_refuses_is_told_in_one_line(
    client: TrainerClient, cluster: Cluster, stage: Stage, request_: str, status: int, told: str
) -> None:
    cluster.fail.append((request_, status))
    with pytest.raises(UserError, match=told) as error:
        stage.run(client)
    assert "\n" not in str(error.value)


def test_a_missing_runtime_is_told(client: TrainerClient, cluster: Cluster, stage: Stage) -> None:
    assert stage.launch.train_job is not None
    other = stage.launch.train_job.model_copy(update={"runtime": "absent"})
    stage.launch = stage.launch.model_copy(update={"train_job": other})
    with pytest.raises(UserError, match=r"TrainingRuntime absent: is not there; apply deploy/training-runtime\.yaml"):
        stage.run(client)


def test_a_job_that_somebody_deletes_is_told(client: TrainerClient, cluster: Cluster, stage: Stage) -> None:
    cluster.on_create = lambda body: cluster.jobs.pop(body["metadata"]["name"])
    with pytest.raises(UserError, match="is not there; somebody has deleted it"):
        stage.run(client)


def test_without_a_storage_location_the_stage_says_so(client: TrainerClient, stage: Stage) -> None:
    stage.location = None  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"set storage\.location"):
        stage.run(client)


def test_what_a_run_has_left_is_deleted_by_its_label(
    client: TrainerClient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, run in (("a", "run 1"), ("b", "run 2"), ("c", "run 1")):
        trainer.create(
            client,
            name,
            TrainJobConfig(nodes=2, runtime="rest-torch"),
            location="s3://bucket/job.json",
            environment={},
            labels=run_label(run),
        )
    api = CoreV1Api(ApiClient(Configuration(host=cluster.url)))
    monkeypatch.setattr(pods, "connect", lambda: (api, "without-kubeflow-trainer"))
    assert pods.delete_train_jobs("run 1", NAMESPACE) == (["a", "c"], [])
    assert list(cluster.jobs) == ["b"]
    assert pods.delete_train_jobs("run 3", NAMESPACE) == ([], [])
    assert pods.delete_train_jobs("run-2", NAMESPACE) == ([], [])  # would look the same without its hash
    assert pods.delete_train_jobs("run 2", None) == ([], [])
    cluster.fail.append(("GET", 403))
    with pytest.raises(UserError, match="the cluster refuses it \\(403"):
        pods.delete_train_jobs("run 2", NAMESPACE)


def test_a_job_that_cannot_be_deleted_keeps_no_other(
    client: TrainerClient, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainJobConfig(nodes=2, runtime="rest-torch")
    for name in "abc":
        trainer.create(client, name, settings, location="s3://b/j", environment={}, labels=run_label("run"))
    api = CoreV1Api(ApiClient(Configuration(host=cluster.url)))
    monkeypatch.setattr(pods, "connect", lambda: (api, NAMESPACE))
    cluster.fail += [(f"DELETE {TRAINER}/trainjobs/a", 404), (f"DELETE {TRAINER}/trainjobs/b", 403)]
    deleted, (problem,) = pods.delete_train_jobs("run", None)
    assert deleted == ["c"] and problem.startswith("TrainJob b: the cluster refuses it (403")


def test_a_model_without_a_stage_goes_by_its_name(tmp_path: Path) -> None:
    location = str(tmp_path / "volume")
    assert train_job._pointer("owner/name", location, "policy") == handoff.Pointer(source="owner/name")
    handoff.write(tmp_path / "cold", handoff.Pointer(source="owner/name"))
    assert train_job._pointer(tmp_path / "cold", location, "policy") == handoff.Pointer(source="owner/name")
    local = tmp_path / "local"
    local.mkdir()
    (local / "config.json").write_text("{}")
    handoff.write(tmp_path / "base", handoff.Pointer(source=str(local)))
    stored = train_job._pointer(tmp_path / "base", location, "policy")
    assert stored.files is not None and (Path(stored.source) / "config.json").is_file()


def test_the_function_holds_nothing_that_a_shell_replaces() -> None:
    source = Path(str(sys.modules["rest_core.operations.launch.train_on_node"].__file__)).read_text(encoding="utf-8")
    function = source[source.index("def train_on_node") :]
    assert not set(function) & set("$`\\")
