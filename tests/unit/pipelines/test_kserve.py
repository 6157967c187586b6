"""The manifest of a KServe InferenceService: what is in it, and that it fits the schemas it consists of."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from kubernetes.client import models as kubernetes_models
from kubernetes_schema import built

from pipelines.cli import cli
from pipelines.cluster.kserve import service_of
from pipelines.platform import Platform, load_platform
from pipelines.rest_pipeline import build
from rest_core.config import RegistryConfig, TrackingConfig, load, validate
from rest_core.errors import UserError
from rest_core.operations import kserve
from rest_core.operations.kserve import inference_service, service_name
from rest_core.operations.tracking import store
from rest_core.operations.tracking.versions import Version
from rest_core.serving.plugin import PLUGIN_FILE
from rest_core.stages import deploy_model
from rest_core.storage import upload_folder

PLATFORM = Path(__file__).parents[3] / "deploy" / "platform.yaml"
# What KServe's PredictorSpec (v1beta1) has besides the fields of a PodSpec, as far as it is used here.
_OF_KSERVE = {"minReplicas": int, "maxReplicas": int}


def check(manifest: dict[str, Any]) -> dict[str, Any]:
    """Hold a manifest against the schema; returns its container."""
    assert manifest.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (manifest["apiVersion"], manifest["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    built("V1ObjectMeta", manifest["metadata"], "metadata")
    assert manifest["spec"].keys() == {"predictor"}
    predictor = manifest["spec"]["predictor"]
    for name, kind in _OF_KSERVE.items():
        assert type(predictor[name]) is kind
    pod = {name: value for name, value in predictor.items() if name not in _OF_KSERVE}
    built(kubernetes_models.V1PodSpec.__name__, pod, "spec.predictor")
    [container] = predictor["containers"]
    assert isinstance(container, dict)
    return container


def version(location: str) -> Version:
    return Version("rest-tool-use", "3", "r" * 32, location, "sqlite:///x.db")


@pytest.fixture
def on_s3(tmp_path: Path, empty_s3: Any) -> str:
    """A checkpoint with the project's own parser, on S3."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    empty_s3.create_bucket(Bucket="bucket")
    for name in ("config.json", PLUGIN_FILE):
        (folder / name).write_text("{}", encoding="utf-8")
    return upload_folder(folder, "s3://bucket/models/3")


def test_the_champion_is_served_as_the_platform_says(on_s3: str) -> None:
    manifest = inference_service(version(on_s3), service_of(load_platform(PLATFORM), "champion"))
    container = check(manifest)
    assert (manifest["metadata"]["name"], manifest["metadata"]["namespace"]) == ("rest-tool-use", "kubeflow")
    assert {one["name"]: one["value"] for one in container["env"]}["STORAGE_URI"] == "s3://bucket/models/3"
    words = container["command"]
    given = dict(itertools.pairwise(words))
    assert given["--model"] == "/mnt/models" and given["--served-model-name"] == "rest-tool-use"
    assert given["--tool-parser-plugin"] == given["--reasoning-parser-plugin"] == f"/mnt/models/{PLUGIN_FILE}"
    assert (given["--host"], given["--port"]) == ("0.0.0.0", str(container["ports"][0]["containerPort"]))
    assert container["resources"]["limits"] == {"cpu": "8", "memory": "64Gi", "nvidia.com/gpu": "1"}
    assert manifest["spec"]["predictor"]["serviceAccountName"] == "rest-serving"


def test_everything_that_a_platform_can_say_of_it(on_s3: str) -> None:
    serving = {
        "image": "registry.example/vllm@sha256:" + "a" * 64,
        "gpu": {"count": 0},
        "shm_size": "8Gi",
        "node_selector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "toleration_seconds": 30}],
        "min_replicas": 0,
        "max_replicas": 4,
        "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        "vllm_options": ["--max-model-len", "4096"],
    }
    platform = validate(Platform, {"serving": serving, "images": {"pull_secrets": ["pull"]}}, where="platform.yaml")
    manifest = inference_service(version(on_s3), service_of(platform, "challenger"))
    container = check(manifest)
    assert manifest["metadata"]["name"] == "rest-tool-use-challenger"
    assert container["command"][-2:] == ["--max-model-len", "4096"]
    assert container["resources"] == {"requests": {}, "limits": {}}
    predictor = manifest["spec"]["predictor"]
    assert predictor["tolerations"][0]["tolerationSeconds"] == 30
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (0, 4)


def test_a_key_comes_from_its_secret_and_from_nowhere_else(on_s3: str) -> None:
    platform = validate(Platform, {"serving": {"api_key_secret": "served"}}, where="platform.yaml")
    container = check(inference_service(version(on_s3), service_of(platform, "champion")))
    (key,) = [one for one in container["env"] if one["name"] == "VLLM_API_KEY"]
    assert key["valueFrom"] == {"secretKeyRef": {"name": "served", "key": "VLLM_API_KEY"}}
    for options in (["--api-key", "k3y"], ["--api_key=k3y"]):
        keyed = validate(Platform, {"serving": {"vllm_options": options}}, where="platform.yaml")
        with pytest.raises(UserError, match=r"serving\.api_key_secret") as error:
            service_of(keyed, "champion")
        assert "k3y" not in str(error.value)


@pytest.mark.parametrize("command", [["serve"], ["serve-rollouts", "--policy", "p"]])
def test_a_key_on_a_command_line_is_refused(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--", "--api-key=k3y"])
    assert isinstance(result.exception, UserError)
    assert "set VLLM_API_KEY" in str(result.exception) and "k3y" not in str(result.exception) + result.output


def test_a_model_on_the_work_volume_is_read_from_its_claim(tmp_path: Path) -> None:
    (tmp_path / "rest/models/3").mkdir(parents=True)
    (tmp_path / "rest/models/3" / PLUGIN_FILE).write_text("", encoding="utf-8")
    work = {"claim": "rest-work", "path": str(tmp_path), "sub_path": "team"}
    platform = validate(Platform, {"volumes": {"work": work}}, where="platform.yaml")
    manifest = inference_service(version((tmp_path / "rest/models/3").as_uri()), service_of(platform, "champion"))
    assert check(manifest)["env"][0]["value"] == "pvc://rest-work/team/rest/models/3"
    with pytest.raises(UserError, match="mounted"):
        inference_service(version((tmp_path / "rest/models/4").as_uri()), service_of(platform, "champion"))


@pytest.mark.parametrize("location", ["file:///home/me/mlruns/artifacts/model", "mlflow-artifacts:/1/2/model"])
def test_a_model_that_no_pod_can_read_is_refused(location: str) -> None:
    with pytest.raises(UserError, match=r"registry\.destination"):
        inference_service(version(location), service_of(Platform(), "champion"))


@pytest.mark.parametrize(
    ("text", "name"),
    [("Rest Tool_Use", "rest-tool-use"), ("4b", "model-4b"), ("x" * 90, "x" * 53), ("a-" * 40, ("a-" * 27)[:53])],
)
def test_names_of_services(text: str, name: str) -> None:
    assert service_name(text) == name


def test_the_command_prints_yaml(on_s3: str, tracking: TrackingConfig) -> None:
    client = store.open_client(str(tracking.uri))
    client.create_registered_model("tools")
    client.create_model_version("tools", on_s3)
    client.set_registered_model_alias("tools", "champion", "1")
    options = ["--kserve", str(PLATFORM), "--set", f"tracking.uri={tracking.uri}", "--set", "registry.name=tools"]
    result = CliRunner().invoke(cli, ["serve", *options, "--", "--max-model-len", "4096"])
    assert result.exit_code == 0, result.output
    container = check(yaml.safe_load(result.stdout))
    assert container["command"][-2:] == ["--max-model-len", "4096"]


class Cluster:
    """A Kubernetes API that answers every request with a status; keeps what it was asked."""

    def __init__(self, http_server: Any, status: int = 200) -> None:
        self.applied: list[tuple[str, dict[str, str]]] = []
        self._status = status
        self.address = http_server(self._answer)

    def _answer(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        self.applied.append((path, query))
        return self._status, {"kind": "InferenceService", "metadata": {}}


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has `apply` talk to a cluster."""

    def connect(cluster: Cluster) -> None:
        from kubernetes.client import ApiClient, Configuration, CoreV1Api

        api = CoreV1Api(ApiClient(Configuration(host=cluster.address)))
        monkeypatch.setattr(kserve, "connect", lambda: (api, "ours"))

    return connect


def test_a_service_is_applied_in_one_request(on_s3: str, http_server: Any, connected: Any) -> None:
    cluster = Cluster(http_server)
    connected(cluster)
    kserve.apply(inference_service(version(on_s3), service_of(load_platform(PLATFORM), "champion")))
    [(path, query)] = cluster.applied
    assert path == "/apis/serving.kserve.io/v1beta1/namespaces/kubeflow/inferenceservices/rest-tool-use"
    assert query == {"fieldManager": "rest-pipelines", "force": "true"}


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "is not there; look whether the cluster has KServe, and the namespace kubeflow"),
        (403, r"the cluster refuses it \(403.*deploy/base/service-account.yaml"),
        (500, "the Kubernetes API failed"),
    ],
)
def test_a_cluster_that_takes_no_service(
    on_s3: str, http_server: Any, connected: Any, status: int, message: str
) -> None:
    connected(Cluster(http_server, status))
    with pytest.raises(UserError, match=rf"^InferenceService rest-tool-use: {message}"):
        kserve.apply(inference_service(version(on_s3), service_of(load_platform(PLATFORM), "champion")))


def test_the_stage_serves_the_version_that_has_the_alias(
    on_s3: str, http_server: Any, connected: Any, tmp_path: Path
) -> None:
    tracking = TrackingConfig(uri=f"sqlite:///{tmp_path}/mlflow.db", experiment="test")
    client = store.connect(tracking)
    registry = RegistryConfig()
    arguments: dict[str, Any] = {"registry": registry, "tracking": tracking, "pipeline_run": "p"}
    arguments["service"] = service_of(load_platform(PLATFORM), "challenger")
    cluster = Cluster(http_server)
    connected(cluster)
    assert deploy_model(**arguments, out=tmp_path / "before").skipped == f"{registry.name} has no challenger yet"
    client.create_registered_model(registry.name)
    run = client.create_run(client.get_experiment_by_name("test").experiment_id)
    made = client.create_model_version(registry.name, on_s3, run_id=run.info.run_id)
    client.set_registered_model_alias(registry.name, "challenger", made.version)
    assert deploy_model(**arguments, out=tmp_path / "after").skipped is None
    manifest = yaml.safe_load((tmp_path / "after/inference-service.yaml").read_text(encoding="utf-8"))
    check(manifest)
    assert manifest["metadata"]["annotations"]["rest-pipelines/model"] == f"{registry.name} version 1"
    assert [path.rsplit("/", 1)[1] for path, _ in cluster.applied] == [f"{registry.name}-challenger"]


def test_a_pipeline_has_the_stage_where_the_platform_says_so() -> None:
    config = load("tiny")
    platform = load_platform(PLATFORM)
    serving = platform.model_copy(update={"serving": platform.serving.model_copy(update={"apply": "champion"})})
    tasks = [
        set(build(config, platform=one).pipeline_spec.components["comp-exit-handler-1"].dag.tasks)
        for one in (platform, serving)
    ]
    assert tasks[1] - tasks[0] == {"deploy-model"}
