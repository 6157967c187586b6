"""A KServe InferenceService that serves a trained model with vLLM, behind OpenAI's API.

KServe's storage initializer brings the checkpoint that STORAGE_URI names to /mnt/models, as it does for every predictor
with a container of one's own. The container is vLLM's image, started as `rest serve` starts it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pipelines.kubernetes_values import spelled
from pipelines.platform import Platform
from rest_core import storage
from rest_core.errors import UserError
from rest_core.operations.tracking import store
from rest_core.operations.tracking.versions import Version
from rest_core.serving.plugin import PLUGIN_FILE
from rest_core.serving.vllm_serve import parser_arguments, plugin_arguments, server_arguments

API_VERSION, KIND = "serving.kserve.io/v1beta1", "InferenceService"
CONTAINER = "kserve-container"  # KServe looks for this name
MODEL_FOLDER = "/mnt/models"  # where KServe's storage initializer puts a model
PORT = 8080
_LONGEST_NAME = 53  # KServe makes a host name of it, with a suffix


def inference_service(version: Version, alias: str, platform: Platform) -> dict[str, Any]:
    """The manifest that serves a registered version.

    Args:
        version: the version; its checkpoint must lie where KServe can read it.
        alias: by which it was chosen, or its number; the service of an alias other than champion has it in its name.
        platform: `platform.yaml`, whose section `serving` says how the pods run.

    Raises:
        UserError: the checkpoint lies where no pod reads it, or its chat template writes calls in no known way.
    """
    serving, source = platform.serving, source_of(version.location, platform)
    name = service_name(version.name if alias == "champion" else f"{version.name}-{alias}")
    arguments = server_arguments(MODEL_FOLDER, name=version.name, host="0.0.0.0", port=PORT, parsers=_parsers(version))
    container: dict[str, Any] = {
        "name": CONTAINER,
        "image": serving.image,
        # Not the image's own entrypoint: `vllm serve` differs from image to image, the module does not.
        "command": ["python3", *arguments, *serving.vllm_options],
        "env": [
            {"name": "STORAGE_URI", "value": source},
            {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        ],
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10, "failureThreshold": 3},
        "resources": _resources(platform),
    }
    predictor: dict[str, Any] = {
        "minReplicas": serving.min_replicas,
        "maxReplicas": serving.max_replicas,
        "containers": [container],
    }
    if serving.service_account is not None:
        predictor["serviceAccountName"] = serving.service_account
    if serving.node_selector:
        predictor["nodeSelector"] = dict(serving.node_selector)
    if serving.tolerations:
        predictor["tolerations"] = [spelled(one.model_dump(exclude_none=True)) for one in serving.tolerations]
    if serving.shm_size is not None:
        container["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]
        predictor["volumes"] = [{"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": serving.shm_size}}]
    if platform.images.pull_secrets:
        predictor["imagePullSecrets"] = [{"name": secret} for secret in platform.images.pull_secrets]
    described = {"rest-pipelines/model": version.title, "rest-pipelines/run": version.run_id}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": name,
            "namespace": platform.namespace,
            "labels": dict(platform.labels),
            "annotations": {**serving.annotations, **described},
        },
        "spec": {"predictor": predictor},
    }


def service_name(text: str) -> str:
    """A name as Kubernetes takes it for a service: lower-case letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower())[:_LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"model-{name}".rstrip("-")


def source_of(location: str, platform: Platform) -> str:
    """A checkpoint's location as KServe's storage initializer reads it: s3://, or pvc:// for the work volume.

    Raises:
        UserError: it is neither on S3 nor on the work volume.
    """
    if storage.is_s3(location):
        return location
    folder, work = store.local_path(location), platform.volumes.work
    if folder is not None and work is not None and work.holds(str(folder)):
        inside = Path(work.sub_path, folder.relative_to(work.path))
        return f"pvc://{work.claim}/{inside}"
    raise UserError(
        f"{store.redact(location)}: KServe reads models from S3 or the work volume; register them there "
        "(registry.destination=s3://bucket/prefix)"
    )


def _parsers(version: Version) -> list[str]:
    """vLLM's arguments that say how responses are read; the checkpoint itself is fetched only where they hang on it."""
    folder = store.local_path(version.location)
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}: not there; give this command where the work volume is mounted")
    if PLUGIN_FILE in storage.list_files(str(folder or version.location)):
        return plugin_arguments(f"{MODEL_FOLDER}/{PLUGIN_FILE}")
    return parser_arguments(version.fetch())


def _resources(platform: Platform) -> dict[str, dict[str, str]]:
    serving = platform.serving
    asked = {"cpu": serving.cpu, "memory": serving.memory}
    if serving.gpu is not None and serving.gpu.count:
        asked[serving.gpu.resource] = str(serving.gpu.count)
    given = {name: value for name, value in asked.items() if value is not None}
    return {"requests": given, "limits": dict(given)}
