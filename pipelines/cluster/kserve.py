"""What platform.yaml says of a served model, as `rest_core.operations.kserve` takes it."""

from __future__ import annotations

from typing import Any

from pipelines.kubernetes_values import spelled
from pipelines.platform import Platform
from rest_core.api_keys import require_no_key
from rest_core.operations.kserve import Claim, Service


def service_of(platform: Platform, alias: str) -> Service:
    """The service of a version, by its alias or number.

    Raises:
        UserError: vLLM's options have a key.
    """
    serving, work = platform.serving, platform.volumes.work
    require_no_key(serving.vllm_options)
    container: dict[str, Any] = {"image": serving.image, "resources": _resources(platform)}
    predictor: dict[str, Any] = {"minReplicas": serving.min_replicas, "maxReplicas": serving.max_replicas}
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
    return Service(
        alias=alias,
        namespace=platform.namespace,
        labels=platform.labels,
        annotations=serving.annotations,
        predictor=predictor,
        container=container,
        vllm_options=serving.vllm_options,
        api_key_secret=serving.api_key_secret,
        claim=None if work is None else Claim(name=work.claim, path=work.path, sub_path=work.sub_path),
    )


def _resources(platform: Platform) -> dict[str, dict[str, str]]:
    serving = platform.serving
    asked = {"cpu": serving.cpu, "memory": serving.memory}
    if serving.gpu is not None and serving.gpu.count:
        asked[serving.gpu.resource] = str(serving.gpu.count)
    given = {name: value for name, value in asked.items() if value is not None}
    return {"requests": given, "limits": dict(given)}
