"""What the platform decides for the stages: where large outputs go, and how trainings are launched.

These two sections of the configuration are parameters of the pipelines, as the others are.
"""

from __future__ import annotations

from typing import Any

from pipelines.kubernetes_values import spelled
from pipelines.placement import cache_variables, image_of
from pipelines.platform import Platform
from pipelines.pod_surroundings import Volume
from rest_core.config import LaunchConfig, StorageConfig, TrainJobConfig
from rest_core.operations.pods import IMAGE_VARIABLE

_SHM = "shm"  # the volume of that name in deploy/training-runtime.yaml


def storage_on(platform: Platform, storage: StorageConfig) -> StorageConfig:
    """`storage`, or the platform's location where the profile names none."""
    return storage if storage.location is not None else StorageConfig(location=platform.storage.location)


def launch_on(platform: Platform, launch: LaunchConfig) -> LaunchConfig:
    """`launch` with the TrainJob that `stages.rest_rl.nodes` asks for; as it is where that is one.

    What the platform says of the stage's pod (GPUs, memory, node selector, tolerations …) is then each node's; the
    stage's own pod only waits.
    """
    stage = platform.stage("rest-rl")
    if stage.nodes is None or stage.nodes == 1:
        return launch
    resources = {name: size for name, size in (("cpu", stage.cpu), ("memory", stage.memory)) if size is not None}
    if stage.gpu is not None:
        resources[stage.gpu.resource] = str(stage.gpu.count)
    volumes: list[dict[str, Any]] = []
    mounts: list[dict[str, Any]] = []
    for name, volume in (("model-cache", platform.volumes.model_cache), ("work", platform.volumes.work)):
        if volume is not None:
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": volume.claim}})
            mounts.append(_mount(name, volume))
    if stage.shm_size is not None:
        volumes.append({"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": stage.shm_size}})
    image = image_of(platform, "train")
    # It takes the place of the runtime's own, whose profile it keeps.
    security = platform.security_context.model_dump(exclude_none=True) | {"seccomp_profile": {"type": "RuntimeDefault"}}
    job = TrainJobConfig(
        nodes=stage.nodes,
        runtime=platform.train_jobs.runtime,
        namespace=platform.namespace,
        image=image,
        deadline_seconds=platform.train_jobs.deadline_seconds,
        labels=platform.labels,
        annotations=platform.annotations,
        resources=resources,
        environment={**cache_variables(platform), IMAGE_VARIABLE: image},
        service_account=platform.service_account,
        node_selector=stage.node_selector or {},
        tolerations=tuple(spelled(toleration.model_dump(exclude_none=True)) for toleration in stage.tolerations or ()),
        volumes=tuple(volumes),
        volume_mounts=tuple(mounts),
        pull_secrets=platform.images.pull_secrets,
        security_context=spelled(security),
    )
    return launch.model_copy(update={"train_job": job})


def _mount(name: str, volume: Volume) -> dict[str, Any]:
    return {"name": name, "mountPath": volume.path} | ({"subPath": volume.sub_path} if volume.sub_path else {})
