"""A KServe InferenceService that serves a trained model with vLLM, behind OpenAI's API.

KServe's storage initializer brings the checkpoint that STORAGE_URI names to /mnt/models, as it does for every predictor
with a container of one's own. The container is vLLM's image, started as `rest serve` starts it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rest_core import storage
from rest_core.api_keys import VLLM_VARIABLE
from rest_core.config import Section
from rest_core.credentials import redact
from rest_core.errors import UserError
from rest_core.operations.api_errors import api_errors
from rest_core.operations.pods import connect
from rest_core.operations.tracking import store
from rest_core.operations.tracking.versions import Version
from rest_core.serving.plugin import PLUGIN_FILE
from rest_core.serving.vllm_serve import parser_arguments, plugin_arguments, server_arguments

API_VERSION, KIND = "serving.kserve.io/v1beta1", "InferenceService"
CONTAINER = "kserve-container"  # KServe looks for this name
MODEL_FOLDER = "/mnt/models"  # where KServe's storage initializer puts a model
PORT = 8080
_LONGEST_NAME = 53  # KServe makes a host name of it, with a suffix
_OWNER = "rest-pipelines"  # of the fields that are applied
_TIMEOUT = {"_request_timeout": 30}  # seconds


class Claim(Section):
    """The claim of the work volume, and where the pods of a run have it."""

    name: str
    path: str
    sub_path: str


class Service(Section):
    """A service as platform.yaml describes it, but for the version that it serves."""

    alias: str
    """Of the version: the service of another one than champion has it in its name."""
    namespace: str
    labels: dict[str, str]
    annotations: dict[str, str]
    predictor: dict[str, Any]
    """Fields of KServe's PredictorSpec but for `containers`."""
    container: dict[str, Any]
    """Fields of the container: image, resources, volumeMounts."""
    vllm_options: tuple[str, ...] = ()
    api_key_secret: str | None = None
    claim: Claim | None = None


def inference_service(version: Version, service: Service) -> dict[str, Any]:
    """The manifest that serves a registered version.

    Raises:
        UserError: the checkpoint lies where no pod reads it, or its chat template writes calls in no known way.
    """
    source, alias = source_of(version.location, service.claim), service.alias
    arguments = server_arguments(MODEL_FOLDER, name=version.name, host="0.0.0.0", port=PORT, parsers=_parsers(version))
    variables: list[dict[str, Any]] = [
        {"name": "STORAGE_URI", "value": source},
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
    ]
    if service.api_key_secret is not None:
        key = {"name": service.api_key_secret, "key": VLLM_VARIABLE}
        variables.append({"name": VLLM_VARIABLE, "valueFrom": {"secretKeyRef": key}})
    container = {
        "name": CONTAINER,
        # Not the image's own entrypoint: `vllm serve` differs from image to image, the module does not.
        "command": ["python3", *arguments, *service.vllm_options],
        "env": variables,
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 10, "failureThreshold": 3},
        **service.container,
    }
    described = {"rest-pipelines/model": version.title, "rest-pipelines/run": version.run_id}
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {
            "name": service_name(version.name if alias == "champion" else f"{version.name}-{alias}"),
            "namespace": service.namespace,
            "labels": dict(service.labels),
            "annotations": {**service.annotations, **described},
        },
        "spec": {"predictor": {**service.predictor, "containers": [container]}},
    }


def apply(manifest: dict[str, Any]) -> None:
    """Make the service on this pod's cluster, or change the one that is there (server-side apply).

    Raises:
        UserError: this is no pod, its service account may not, or the cluster has no KServe.
    """
    core, _ = connect()
    name, namespace = (manifest["metadata"][key] for key in ("name", "namespace"))
    with api_errors(f"{KIND} {name}", missing=f"look whether the cluster has KServe, and the namespace {namespace}"):
        # Not by `CustomObjectsApi`, which sends no patch of this type.
        core.api_client.call_api(
            f"/apis/{API_VERSION}/namespaces/{namespace}/inferenceservices/{name}",
            "PATCH",
            query_params=[("fieldManager", _OWNER), ("force", "true")],
            header_params={"Content-Type": "application/apply-patch+yaml", "Accept": "application/json"},
            body=manifest,  # JSON is YAML
            auth_settings=["BearerToken"],
            response_type="object",
            **_TIMEOUT,
        )


def service_name(text: str) -> str:
    """A name as Kubernetes takes it for a service: lower-case letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower())[:_LONGEST_NAME].strip("-")
    return name if name[:1].isalpha() else f"model-{name}".rstrip("-")


def source_of(location: str, claim: Claim | None) -> str:
    """A checkpoint's location as KServe's storage initializer reads it: s3://, or pvc:// for the work volume.

    Raises:
        UserError: it is neither on S3 nor on the work volume.
    """
    if storage.is_s3(location):
        return location
    folder = store.local_path(location)
    if folder is not None and claim is not None and folder.is_relative_to(claim.path):
        return f"pvc://{claim.name}/{Path(claim.sub_path, folder.relative_to(claim.path))}"
    raise UserError(
        f"{redact(location)}: KServe reads models from S3 or the work volume; register them there "
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
