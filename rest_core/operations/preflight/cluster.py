"""Whether Secrets, volumes and the TrainingRuntime of a run are there; pods would wait for them for ever."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from rest_core.config import StorageConfig, TrainJobConfig
from rest_core.errors import UserError, one_line
from rest_core.operations import pods
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight.surroundings import FilesOf, Secret


def check_secret(secret: Secret) -> str:
    """Raise `UserError` unless all variables of a Secret are set and not empty; their values are not looked at."""
    missing = [name for name in secret.variables if not os.environ.get(name, "").strip()]
    if missing:
        raise UserError(
            f"{', '.join(missing)} missing or empty; make the {secret.kind} {secret.name} with "
            f"{'this key' if len(missing) == 1 else 'these keys'} in the run's namespace (deploy/secrets.example.yaml)"
        )
    return f"gives {', '.join(secret.variables)}"


def check_files(files: FilesOf, ca_bundle: str | None = None) -> str:
    """Raise `UserError` unless a Secret or ConfigMap is there as a folder; authorities that lie in it are read."""
    folder = Path(files.path)
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("..")) if folder.is_dir() else []
    if not names:
        raise UserError(
            f"nothing is at {files.path}: make the {files.kind} {files.name} in the run's namespace, or leave it out "
            "of `files`"
        )
    if ca_bundle is not None and Path(ca_bundle).is_relative_to(folder):
        try:
            ssl.create_default_context(cafile=ca_bundle)
        except OSError as error:
            raise UserError(f"ca_bundle={ca_bundle}: no certificates can be read there ({one_line(error)})") from None
    return f"{files.path} has {', '.join(names)}"


def check_volume(name: str) -> str:
    """Raise `UserError` unless a PersistentVolumeClaim has a volume, or gets one when it is mounted."""
    api, namespace = pods.connect()
    claim = pods.claim(api, namespace, name)
    if claim is None:
        raise UserError(
            f"there is no PersistentVolumeClaim {name} in the namespace {namespace}; make it (deploy/base), or "
            "name another in platform.yaml"
        )
    phase, storage_class = claim.status.phase, claim.spec.storage_class_name
    if phase == "Bound":
        size = (claim.status.capacity or {}).get("storage", "of unknown size")
        return f"{name} is bound ({size}, {', '.join(claim.spec.access_modes or ())})"
    if phase == "Pending" and storage_class:
        try:
            if pods.binds_when_mounted(api, storage_class):
                return f"{name} is bound when the first pod mounts it (storage class {storage_class})"
        except NotAllowed as reason:
            raise NotAllowed(
                f"{name} is Pending, and whether it waits for its first pod is not known: {reason}"
            ) from None
    raise UserError(
        f"{name} is {phase}: pods that mount it would wait for ever; see kubectl -n {namespace} describe pvc {name}"
    )


def check_train_job(job: TrainJobConfig, storage: StorageConfig) -> str:
    """Raise `UserError` unless the stage rest-rl could make its TrainJob."""
    if storage.location is None:
        raise UserError(f"the {job.nodes} nodes share nothing but a storage location; set storage.location")
    api, own = pods.connect()
    namespace = job.namespace or own
    if not pods.has_training_runtime(api, namespace, job.runtime):
        raise UserError(
            f"there is no TrainingRuntime {job.runtime} in the namespace {namespace}; install Kubeflow Trainer, and "
            "apply deploy/training-runtime.yaml there"
        )
    return f"TrainingRuntime {job.runtime} is there"
