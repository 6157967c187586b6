"""The manifests in deploy/: each against the schema of its kind, and against what the code expects of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import models as kubernetes_models
from kubernetes_schema import built

DEPLOY = Path(__file__).parents[3] / "deploy"
FOLDERS = (DEPLOY, *(DEPLOY / name for name in ("base", "standalone", "profile", "mlflow")))
_NOT_MANIFESTS = {"kustomization.yaml", "platform.yaml"}


def objects(*folders: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for folder in folders:
        for path in sorted(folder.glob("*.yaml")):
            if path.name in _NOT_MANIFESTS:
                continue
            for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
                yield f"{path.relative_to(DEPLOY)}/{document['kind']}/{document['metadata']['name']}", document


ALL = dict(objects(*FOLDERS))


@pytest.mark.parametrize("name", [name for name, value in ALL.items() if value["kind"] != "TrainingRuntime"])
def test_manifest_fits_the_schema_of_its_kind(name: str):
    value = ALL[name]
    model = getattr(kubernetes_models, f"V1{value['kind']}")
    group = value["apiVersion"].rpartition("/")[0]
    assert group in {"", "apps", "rbac.authorization.k8s.io", "networking.k8s.io"}
    built(model.__name__, value, name)


def test_the_schema_refuses_what_is_wrong():
    good = ALL["mlflow/mlflow.yaml/Deployment/mlflow"]
    for where, wrong in {
        "unknown fields": {**good, "spec": {**good["spec"], "replica": 1}},
        "is no int": {**good, "spec": {**good["spec"], "replicas": "1"}},
        "is no str": {**good, "metadata": {"name": "x", "labels": {"a": 1}}},
    }.items():
        with pytest.raises(AssertionError, match=where):
            built("V1Deployment", wrong, "x")
    with pytest.raises(ValueError, match="selector"):
        built("V1Deployment", {"spec": {"template": {}}}, "x")


def test_training_runtime_fits_kubeflow_trainers_schema():
    trainer_models = pytest.importorskip("kubeflow_trainer_api.models")
    manifest = ALL["training-runtime.yaml/TrainingRuntime/rest-torch"]
    read = trainer_models.TrainerV1alpha1TrainingRuntime.from_dict(manifest)
    assert read.to_dict() == manifest  # an unknown field would be lost


def test_the_sdk_reads_the_training_runtime():
    """What kubeflow's SDK looks for in a runtime before it makes a TrainJob of it."""
    trainer_models = pytest.importorskip("kubeflow_trainer_api.models")
    from kubeflow.trainer.backends.kubernetes import utils

    manifest = ALL["training-runtime.yaml/TrainingRuntime/rest-torch"]
    runtime = trainer_models.TrainerV1alpha1TrainingRuntime.from_dict(manifest)
    trainer = utils.get_runtime_trainer(
        manifest["metadata"]["labels"]["trainer.kubeflow.org/framework"],
        runtime.spec.template.spec.replicated_jobs,
        runtime.spec.ml_policy,
    )
    assert "torchrun" in trainer.command[-1]
    assert trainer.image == "rest-pipelines-train"


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, value in ALL.items():
        if value["kind"] in ("Deployment", "StatefulSet"):
            yield name, value["spec"]["template"]["spec"]
        if value["kind"] == "TrainingRuntime":
            for job in value["spec"]["template"]["spec"]["replicatedJobs"]:
                yield name, job["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(("name", "pod"), list(pods()))
def test_every_container_is_non_root_and_says_what_it_needs(name: str, pod: dict[str, Any]):
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in pod.get("volumes", ())}
    claims = {
        claim["metadata"]["name"]
        for value in ALL.values()
        if value["kind"] == "StatefulSet" and value["spec"]["template"]["spec"] is pod
        for claim in value["spec"]["volumeClaimTemplates"]
    }
    for container in pod["containers"]:
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes | claims
        assert not container["image"].endswith(":latest")
        if "TrainingRuntime" not in name:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys()
            assert ":" in container["image"]


def test_secrets_that_are_referred_to_have_an_example():
    for folder in FOLDERS:
        examples = {
            value["metadata"]["name"]: set(value["stringData"])
            for value in dict(objects(folder)).values()
            if value["kind"] == "Secret"
        }
        own = set(dict(objects(folder)))
        for name, pod in pods():
            if name not in own:
                continue
            for variable in (variable for container in pod["containers"] for variable in container["env"]):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference is None:
                    continue
                assert variable["name"] in (reference["key"], "PGPASSWORD")
                assert reference["name"] in examples
                assert reference["key"] in examples[reference["name"]] or reference["optional"]


def test_no_example_holds_a_secret():
    for name, value in ALL.items():
        if value["kind"] == "Secret":
            assert name.split("/")[-3].endswith("secrets.example.yaml")
            assert "data" not in value
            for key, text in value["stringData"].items():
                assert text == "CHANGE-ME" or key in {"AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI"}


def test_services_find_their_pods_and_ports():
    for folder in FOLDERS:
        found = dict(objects(folder)).values()
        for service in (value for value in found if value["kind"] == "Service"):
            (workload,) = [
                value
                for value in found
                if value["kind"] in ("Deployment", "StatefulSet")
                and service["spec"]["selector"].items() <= value["spec"]["template"]["metadata"]["labels"].items()
            ]
            assert workload["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
            ports = {
                port["name"]: port["containerPort"]
                for container in workload["spec"]["template"]["spec"]["containers"]
                for port in container["ports"]
            }
            for port in service["spec"]["ports"]:
                assert ports[port.get("targetPort", port["name"])] == port["port"]


def test_mlflow_answers_under_the_names_that_pods_use():
    from mlflow.server.security_utils import is_allowed_host_header, should_block_cors_request

    deployment = ALL["mlflow/mlflow.yaml/Deployment/mlflow"]["spec"]["template"]["spec"]["containers"][0]
    environment = {variable["name"]: variable.get("value") for variable in deployment["env"]}
    allowed = environment["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    uri = ALL["secrets.example.yaml/Secret/rest-mlflow"]["stringData"]["MLFLOW_TRACKING_URI"]
    assert is_allowed_host_header(allowed, uri.removeprefix("http://"))
    assert not is_allowed_host_header(allowed, "elsewhere.example.com")
    # People open it under the last of the hosts: what the page itself sends must be let in, too.
    origins = environment["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert [f"https://{allowed[-1]}"] == origins
    assert not should_block_cors_request(origins[0], "POST", origins)
    assert should_block_cors_request("https://elsewhere.example.com", "POST", origins)


def test_mlflows_settings_are_options_of_its_server():
    import click
    from mlflow import environment_variables
    from mlflow.cli import server

    known = {
        name
        for option in server.params
        if isinstance(option, click.Option)
        for name in ([option.envvar] if isinstance(option.envvar, str) else option.envvar or [])
    }
    deployment = ALL["mlflow/mlflow.yaml/Deployment/mlflow"]["spec"]["template"]["spec"]["containers"][0]
    known |= {value.name for value in vars(environment_variables).values() if hasattr(value, "name")}
    used = {variable["name"] for variable in deployment["env"] if variable["name"].startswith("MLFLOW_")}
    assert used and used <= known


def test_the_service_account_may_do_what_a_run_does():
    rules = ALL["base/service-account.yaml/Role/rest-pipeline"]["rules"]
    allowed = {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    trainer = "trainer.kubeflow.org"
    assert {(trainer, "trainjobs", verb) for verb in ("create", "get", "list", "delete")} <= allowed
    assert {(trainer, "trainingruntimes", "get"), ("", "pods", "list"), ("", "pods/log", "get")} <= allowed
    assert ("", "persistentvolumeclaims", "get") in allowed
    of_the_cluster = ALL["base/service-account.yaml/ClusterRole/rest-pipeline-cluster"]["rules"]
    assert [(rule["resources"], rule["verbs"]) for rule in of_the_cluster] == [
        (["nodes"], ["list"]),
        (["storageclasses"], ["get"]),
        (["clustertrainingruntimes"], ["get"]),
    ]
    assert not any("*" in entry or entry[1] == "secrets" for entry in allowed)
    bindings = [value for value in ALL.values() if value["kind"] in ("RoleBinding", "ClusterRoleBinding")]
    assert {binding["roleRef"]["name"] for binding in bindings} >= {"rest-pipeline", "rest-pipeline-cluster"}
    for binding in bindings:
        if binding["metadata"]["name"] != "rest-pipeline-user":
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "rest-pipeline"}]


def test_names_are_those_of_the_example_platform():
    platform = yaml.safe_load((DEPLOY / "platform.yaml").read_text(encoding="utf-8"))
    names = {(value["kind"], value["metadata"]["name"]) for value in ALL.values()}
    wanted = {("ServiceAccount", platform.get("service_account"))}
    wanted |= {("Secret", name) for name in platform.get("secrets", {}).values()}
    wanted |= {("PersistentVolumeClaim", volume["claim"]) for volume in platform["volumes"].values() if volume}
    wanted |= {("TrainingRuntime", platform.get("train_jobs", {}).get("runtime", "rest-torch"))}
    assert {(kind, name) for kind, name in wanted if name is not None} <= names
    kustomization = yaml.safe_load((DEPLOY / "standalone" / "kustomization.yaml").read_text(encoding="utf-8"))
    assert platform.get("namespace", "kubeflow") == kustomization["namespace"]
