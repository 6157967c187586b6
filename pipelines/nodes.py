"""What the platform decides for the stages: where large outputs go, and how trainings are launched.

These two sections of the configuration are parameters of the pipelines, as the others are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.kubernetes_values import spelled
from pipelines.placement import cache_variables, image_of
from pipelines.platform import Platform
from pipelines.pod_surroundings import SCRATCH, SHM, Scratch, Volume
from pipelines.stage_pods import NodeTerm
from rest_core.config import LaunchConfig, StorageConfig, TrainJobConfig
from rest_core.operations.pods import IMAGE_VARIABLE


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
        volumes.append({"name": SHM, "emptyDir": {"medium": "Memory", "sizeLimit": stage.shm_size}})
    for files in platform.files:
        source = {"secret": {"secretName": files.name}} if files.secret else {"configMap": {"name": files.name}}
        volumes.append({"name": files.name, **source})
        mounts.append({"name": files.name, "mountPath": files.path, "readOnly": True})
    if (scratch := platform.volumes.scratch) is not None:
        volumes.append({"name": SCRATCH, **_scratch_volume(scratch)})
        mounts.append({"name": SCRATCH, "mountPath": scratch.path})
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
        environment={
            **platform.variables,
            **cache_variables(platform),
            **({"TMPDIR": scratch.path} if scratch is not None else {}),
            IMAGE_VARIABLE: image,
        },
        service_account=platform.service_account,
        node_selector=stage.node_selector or {},
        affinity=_affinity(stage.node_affinity or ()),
        tolerations=tuple(spelled(toleration.model_dump(exclude_none=True)) for toleration in stage.tolerations or ()),
        volumes=tuple(volumes),
        volume_mounts=tuple(mounts),
        pull_secrets=platform.images.pull_secrets,
        security_context=spelled(security),
    )
    return launch.model_copy(update={"train_job": job})


def _scratch_volume(scratch: Scratch) -> dict[str, Any]:
    if scratch.storage_class is None:
        return {"emptyDir": {"sizeLimit": scratch.size}}
    asked = {"resources": {"requests": {"storage": scratch.size}}, "storageClassName": scratch.storage_class}
    return {"ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"], **asked}}}}


def _affinity(terms: Sequence[NodeTerm]) -> dict[str, Any]:
    def expression(term: NodeTerm) -> dict[str, Any]:
        return {"key": term.key, "operator": term.operator} | ({"values": list(term.values)} if term.values else {})

    required = [expression(term) for term in terms if term.weight is None]
    preferred = [
        {"weight": term.weight, "preference": {"matchExpressions": [expression(term)]}}
        for term in terms
        if term.weight is not None
    ]
    when = "DuringSchedulingIgnoredDuringExecution"
    node: dict[str, Any] = {f"preferred{when}": preferred} if preferred else {}
    if required:
        node[f"required{when}"] = {"nodeSelectorTerms": [{"matchExpressions": required}]}
    return {"nodeAffinity": node} if node else {}


def _mount(name: str, volume: Volume) -> dict[str, Any]:
    return {"name": name, "mountPath": volume.path} | ({"subPath": volume.sub_path} if volume.sub_path else {})
