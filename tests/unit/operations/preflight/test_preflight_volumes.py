"""Claims and TrainingRuntimes as a Kubernetes API tells of them; files as the pod has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import certifi
import pytest

from rest_core.config import StorageConfig, TrainJobConfig
from rest_core.errors import UserError
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight import cluster as cluster_checks
from rest_core.operations.preflight.surroundings import FilesOf

JOB = TrainJobConfig(nodes=2, runtime="rest-torch")
STORAGE = StorageConfig(location="s3://bucket")


@pytest.mark.parametrize(
    ("phase", "storage_class", "found"),
    [
        ("Bound", "nfs", r"^work is bound \(500Gi, ReadWriteMany\)$"),
        ("Pending", "local", "^work is bound when the first pod mounts it"),
    ],
)
def test_a_claim_that_pods_can_mount(cluster: Any, phase: str, storage_class: str, found: str) -> None:
    cluster.add_claim("work", phase, storage_class)
    cluster.add_storage_class("local", "WaitForFirstConsumer")
    assert re.search(found, cluster_checks.check_volume("work"))


@pytest.mark.parametrize(
    ("phase", "storage_class"),
    [("Lost", "nfs"), ("Pending", "nfs"), ("Pending", "no-such-class"), ("Pending", None), ("Pending", "")],
)
def test_a_claim_that_pods_would_wait_for(cluster: Any, phase: str, storage_class: str | None) -> None:
    cluster.add_claim("work", phase, storage_class)
    cluster.add_storage_class("nfs", "Immediate")
    with pytest.raises(UserError, match=rf"^work is {phase}: pods .* kubectl -n team describe pvc work$"):
        cluster_checks.check_volume("work")


def test_a_claim_that_is_not_there(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"^there is no PersistentVolumeClaim work in the namespace team; make it"):
        cluster_checks.check_volume("work")


@pytest.mark.parametrize("resource", ["persistentvolumeclaims", "storageclasses"])
def test_what_may_not_be_read_is_no_problem(cluster: Any, resource: str) -> None:
    cluster.add_claim("work", "Pending", "nfs")
    cluster.forbidden.add(resource)
    with pytest.raises(NotAllowed, match=f"get {resource}: the cluster refuses it \\(403"):
        cluster_checks.check_volume("work")


@pytest.mark.parametrize("kind", ["trainingruntimes", "clustertrainingruntimes"])
def test_a_runtime_of_the_namespace_or_of_the_cluster(cluster: Any, kind: str) -> None:
    cluster.named[kind, "rest-torch"] = {"metadata": {"name": "rest-torch"}}
    assert cluster_checks.check_train_job(JOB, STORAGE) == "TrainingRuntime rest-torch is there"


@pytest.mark.parametrize("forbidden", [set(), {"clustertrainingruntimes"}])
def test_a_runtime_that_is_not_there(cluster: Any, forbidden: set[str]) -> None:
    cluster.forbidden |= forbidden
    with pytest.raises(UserError, match=r"^there is no TrainingRuntime rest-torch in the namespace other; install"):
        cluster_checks.check_train_job(JOB.model_copy(update={"namespace": "other"}), STORAGE)
    assert any("/namespaces/other/" in path for path, _ in cluster.asked)


def test_runtimes_that_may_not_be_read(cluster: Any) -> None:
    cluster.forbidden.add("trainingruntimes")
    with pytest.raises(NotAllowed, match=r"get trainingruntimes: the cluster refuses it \(403"):
        cluster_checks.check_train_job(JOB, STORAGE)


def test_nodes_that_share_no_storage(cluster: Any) -> None:
    with pytest.raises(UserError, match=r"^the 2 nodes share nothing but a storage location; set storage\.location$"):
        cluster_checks.check_train_job(JOB, StorageConfig())


def test_files_are_there_and_hold_certificates(tmp_path: Path) -> None:
    files = FilesOf(kind="ConfigMap", name="company-ca", path=str(tmp_path))
    with pytest.raises(UserError, match=r"nothing is at .*: make the ConfigMap company-ca in the run's namespace"):
        cluster_checks.check_files(files)
    with pytest.raises(UserError, match="nothing is at /no/such/folder"):
        cluster_checks.check_files(files.model_copy(update={"path": "/no/such/folder"}))
    bundle = tmp_path / "ca.crt"
    bundle.write_text("no certificates")
    assert cluster_checks.check_files(files) == f"{tmp_path} has ca.crt"
    assert cluster_checks.check_files(files, "/elsewhere/ca.crt")  # below another folder of files
    for wrong in (bundle, tmp_path / "ca.pem"):
        with pytest.raises(UserError, match=rf"ca_bundle={wrong}: no certificates can be read there"):
            cluster_checks.check_files(files, str(wrong))
    bundle.write_bytes(Path(certifi.where()).read_bytes())
    cluster_checks.check_files(files, str(bundle))
