"""deploy/ as kustomize renders it: each overlay, with each component and with all of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_schema import built

DEPLOY = Path(__file__).parents[3] / "deploy"
_BY_ITSELF = {"training-runtime.yaml", "work-volume.yaml"}  # what some clusters only need, or know the kind of
MLFLOW = [path.name for path in sorted((DEPLOY / "mlflow" / "components").iterdir())]
RENDERED = [
    ("standalone", ()),
    ("profile", ()),
    *((overlay, ("components/irsa",)) for overlay in ("standalone", "profile")),
    ("mlflow", ()),
    *(("mlflow", (f"mlflow/components/{name}",)) for name in MLFLOW),
    (
        "mlflow",
        tuple(f"mlflow/components/{name}" for name in ("external-postgres", "postgres-tls", "irsa", "openshift")),
    ),
]
Objects = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def render(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Objects]:
    """render(overlay, components): its objects by "Kind/name", each held against its schema, in team-x."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    top = tmp_path_factory.mktemp("overlays")
    shutil.copytree(DEPLOY, top / "deploy")

    @cache
    def run(overlay: str, components: tuple[str, ...] = ()) -> Objects:
        edited = top / "deploy" / overlay / "kustomization.yaml"
        text = (DEPLOY / overlay / "kustomization.yaml").read_text(encoding="utf-8")
        text, edits = re.subn(r"(?m)^namespace: \S+", "namespace: team-x", text)
        assert edits == 1
        given = [f"\n  - {'../' * (overlay.count('/') + 1)}{name}" for name in components]
        edited.write_text(text + ("\ncomponents:" + "".join(given) if given else ""), encoding="utf-8")
        done = subprocess.run(["kubectl", "kustomize", edited.parent], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = {f"{value['kind']}/{value['metadata']['name']}": value for value in yaml.safe_load_all(done.stdout)}
        for name, value in found.items():
            built(f"V1{value['kind']}", value, name)
        return found

    return run


@pytest.mark.parametrize(("overlay", "components"), RENDERED)
def test_everything_is_in_the_one_namespace_that_is_edited(
    render: Callable[..., Objects], overlay: str, components: tuple[str, ...]
) -> None:
    rendered = render(overlay, components)
    assert len(rendered) > 3
    for where, value in rendered.items():
        shared = value["kind"].startswith("Cluster") or value["kind"] == "Namespace"
        assert value["metadata"].get("namespace") == (None if shared else "team-x"), where
        assert value["metadata"]["labels"]["app.kubernetes.io/part-of"] == "rest-pipelines", where
        accounts = [one for one in value.get("subjects", ()) if one["kind"] == "ServiceAccount"]
        assert {one["namespace"] for one in accounts} <= {"team-x"}, where


@pytest.mark.parametrize(("overlay", "components"), [one for one in RENDERED if one[0] == "mlflow"])
def test_its_pods_are_restricted_and_whole(
    render: Callable[..., Objects], overlay: str, components: tuple[str, ...]
) -> None:
    rendered = render(overlay, components)
    workloads = [value for value in rendered.values() if value["kind"] in ("Deployment", "StatefulSet")]
    assert len(workloads) == (1 if any("external" in name for name in components) else 2)
    for workload in workloads:
        pod = workload["spec"]["template"]["spec"]
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True and security["seccompProfile"] == {"type": "RuntimeDefault"}
        own = {"runAsUser", "runAsGroup", "fsGroup"} & security.keys()
        assert not own if any("openshift" in name for name in components) else "runAsUser" in own
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert re.search(r":v?\d+\.\d+|@sha256:[0-9a-f]{64}$", container["image"])
        claims = {claim["metadata"]["name"] for claim in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes | claims


def test_the_runs_of_kfp_standalone_have_the_rights_of_its_runner(render: Callable[..., Objects]) -> None:
    binding = render("standalone")["RoleBinding/rest-pipeline-runner"]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", "pipeline-runner")


def test_the_runs_of_a_profile_have_the_rights_of_its_editor(render: Callable[..., Objects]) -> None:
    rendered = render("profile")
    binding = rendered["RoleBinding/rest-pipeline-runner"]
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("ClusterRole", "kubeflow-edit")
    (rule,) = rendered["Role/rest-pipeline-user"]["rules"]
    assert (rule["resources"], rule["resourceNames"]) == (["serviceaccounts"], ["rest-pipeline"])
    assert rule["verbs"] == ["use"]


@pytest.mark.parametrize("overlay", ["standalone", "profile"])
def test_two_namespaces_do_not_take_each_others_rights_on_the_cluster(
    render: Callable[..., Objects], overlay: str
) -> None:
    (binding,) = [value for value in render(overlay).values() if value["kind"] == "ClusterRoleBinding"]
    assert binding["metadata"]["name"] == "rest-pipeline-cluster.team-x"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "rest-pipeline", "namespace": "team-x"}]


@pytest.mark.parametrize(
    ("overlay", "component", "account"),
    [
        ("standalone", "components/irsa", "rest-pipeline"),
        ("profile", "components/irsa", "rest-pipeline"),
        ("mlflow", "mlflow/components/irsa", "mlflow"),
    ],
)
def test_without_keys_an_account_is_a_role_and_no_secret_of_s3_is_required(
    render: Callable[..., Objects], overlay: str, component: str, account: str
) -> None:
    rendered = render(overlay, (component,))
    annotations = rendered[f"ServiceAccount/{account}"]["metadata"]["annotations"]
    assert annotations["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::")
    if overlay == "mlflow":
        pod = rendered["Deployment/mlflow"]["spec"]["template"]["spec"]
        assert pod["serviceAccountName"] == account
        named = {one["name"]: one.get("valueFrom", {}).get("secretKeyRef", {}) for one in pod["containers"][0]["env"]}
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & named.keys()
        assert all(one.get("optional") for one in named.values() if one.get("name") == "mlflow-s3")


def test_the_password_of_the_database_is_in_no_uri(render: Callable[..., Objects]) -> None:
    for components in ((), ("mlflow/components/external-postgres",)):
        container = render("mlflow", components)["Deployment/mlflow"]["spec"]["template"]["spec"]["containers"][0]
        settings = {one["name"]: one for one in container["env"]}
        assert re.fullmatch(
            r"postgresql\+psycopg2://mlflow@[\w.]+:5432/mlflow", settings["MLFLOW_BACKEND_STORE_URI"]["value"]
        )
        assert settings["PGPASSWORD"]["valueFrom"]["secretKeyRef"]["key"] == "POSTGRES_PASSWORD"


def test_with_tls_the_databases_name_is_checked_and_its_key_is_its_own(render: Callable[..., Objects]) -> None:
    rendered = render("mlflow", ("mlflow/components/postgres-tls",))
    pod = rendered["Deployment/mlflow"]["spec"]["template"]["spec"]
    settings = {one["name"]: one.get("value") for one in pod["containers"][0]["env"]}
    assert settings["PGSSLMODE"] == "verify-full"
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "postgres-tls"]
    assert settings["PGSSLROOTCERT"] == f"{mount['mountPath']}/ca.crt"
    (volume,) = [one for one in pod["volumes"] if one["name"] == "postgres-tls"]
    assert [one["key"] for one in volume["secret"]["items"]] == ["ca.crt"]  # the key is not for this pod
    server = rendered["StatefulSet/postgres"]["spec"]["template"]["spec"]
    (volume,) = [one for one in server["volumes"] if one["name"] == "postgres-tls"]
    assert volume["secret"]["defaultMode"] == 0o440


@pytest.mark.parametrize("folder", ["base", "standalone", "profile", "mlflow"])
def test_a_kustomization_has_every_manifest_of_its_folder(folder: str) -> None:
    kustomization = yaml.safe_load((DEPLOY / folder / "kustomization.yaml").read_text(encoding="utf-8"))
    there = {path.name for path in (DEPLOY / folder).glob("*.yaml")} - {"kustomization.yaml"} - _BY_ITSELF
    named = {name for name in kustomization["resources"] if name != "../base"}
    assert named == {name for name in there if not name.endswith(".example.yaml")}
    for name in named:
        for value in yaml.safe_load_all((DEPLOY / folder / name).read_text(encoding="utf-8")):
            assert "namespace" not in value["metadata"], f"{name}: the kustomization says the namespace"
