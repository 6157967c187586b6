"""Puts a task where and how `platform.yaml` says, with kfp's and kfp-kubernetes' own setters.

KFP sets the service account for a whole run, when it is submitted: `rest submit` reads it from the same file.
"""

from __future__ import annotations

from kfp import dsl

from components.images import image
from pipelines.platform import Platform, StagePlatform
from rest_core.config import Config
from rest_core.errors import needs_extra
from rest_core.operations.catalogue import STAGES
from rest_core.operations.catalogue_entry import Stage
from rest_core.operations.pods import (
    GPUS_VARIABLE,
    IMAGE_VARIABLE,
    PART_OF_LABEL,
    PROJECT,
    RUN_ID_LABEL,
    RUN_ID_VARIABLE,
    STAGE_LABEL,
)
from rest_core.operations.preflight.surroundings import Gpus, Mount, Secret, Surroundings

with needs_extra("cluster"):
    import kfp.kubernetes as kubernetes

# Keys of the Secrets, which are the variables' names: what a Secret must have, and what it may have.
_REQUIRED_KEYS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "hugging_face": ("HF_TOKEN",),
    "mlflow": ("MLFLOW_TRACKING_URI",),
    "webhook": ("REST_WEBHOOK_URL",),
}
_OPTIONAL_KEYS = {
    "s3": ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
    "hugging_face": (),
    "mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    "webhook": ("REST_WEBHOOK_FORM", "REST_WEBHOOK_WHEN"),
}


def place(task: dsl.PipelineTask, stage: Stage, platform: Platform, config: Config) -> None:
    """Give a task its image, resources, volumes, secrets, retries and everything else of its stage.

    Args:
        task: a component's task.
        platform: the whole `platform.yaml`.
        stage, config: what the task runs, and what the pipeline is compiled with (`pipelines.graph.on_platform`).
    """
    own = platform.stage(stage.name)
    if (own.nodes or 1) > 1 or (own.gpu is not None and not stage.enabled(config)):
        own = _light(platform, own)
    _choose_image(task, platform, stage)
    _ask_for_resources(task, own)
    _mount(task, platform, stage, own.shm_size, config.storage.location)
    _hand_secrets(task, platform, stage)
    _restrict(task, platform, own)
    _bound_and_repeat(task, own)
    identify(task, stage)  # last: its labels are not to be replaced by the platform's


def identify(task: dsl.PipelineTask, stage: Stage) -> None:
    """Let the pod know its run, and others find the pod; cache the task where its inputs decide its result.

    The run's id comes from the pod's label: as an input (KFP resolves PIPELINE_JOB_ID_PLACEHOLDER there, and only as a
    task's constant) it would be part of the cache key.
    """
    kubernetes.use_field_path_as_env(task, RUN_ID_VARIABLE, f"metadata.labels['{RUN_ID_LABEL}']")
    kubernetes.add_pod_label(task, PART_OF_LABEL, PROJECT)
    kubernetes.add_pod_label(task, STAGE_LABEL, stage.name)
    task.set_caching_options(stage.cached)


def surroundings(platform: Platform, config: Config) -> Surroundings:
    """What the pods of a run are promised, for preflight to look whether it is there."""
    gpus, off = [], []
    for stage in STAGES:
        own = platform.stage(stage.name)
        if own.gpu is None:
            continue
        if not stage.enabled(config):
            if (own.nodes or 1) == 1:  # the pods of a TrainJob have theirs as soon as a run makes one
                off.append(stage.name)
            continue
        gpus.append(
            Gpus(
                stage=stage.name,
                resource=own.gpu.resource,
                count=own.gpu.count,
                nodes=own.nodes or 1,
                node_selector=own.node_selector or {},
                tolerations=own.tolerations or (),
            )
        )
    return Surroundings(
        secrets=tuple(
            Secret(name=name, variables=_REQUIRED_KEYS[kind])
            for kind in _REQUIRED_KEYS
            if (name := getattr(platform.secrets, kind)) is not None
        ),
        mounts=tuple(
            Mount(claim=volume.claim, path=volume.path)
            for volume in (platform.volumes.model_cache, platform.volumes.work)
            if volume is not None
        ),
        gpus=tuple(gpus),
        without_gpu=tuple(off),
    )


def image_of(platform: Platform, target: str) -> str:
    """The reference of the image that a target of the Dockerfile is."""
    return str(getattr(platform.images, target) or image(target))


def cache_variables(platform: Platform) -> dict[str, str]:
    """Environment variables that send downloads to the model cache, else to a folder of the work volume."""
    cache, work = platform.volumes.model_cache, platform.volumes.work
    if cache is not None:
        folder = cache.path.rstrip("/")
    elif work is not None:
        folder = f"{work.path.rstrip('/')}/.cache"
    else:
        return {}
    return {"HF_HOME": f"{folder}/huggingface", "XDG_CACHE_HOME": folder}  # rest_core.storage.cache_folder reads this


def _light(platform: Platform, own: StagePlatform) -> StagePlatform:
    """What a pod asks for whose stage does nothing itself: it is switched off, or follows a TrainJob."""
    default = platform.stages.default
    lasting = {"timeout_seconds": own.timeout_seconds, "retries": own.retries}
    return default.model_copy(update={"gpu": None, "shm_size": None, **lasting})


def _choose_image(task: dsl.PipelineTask, platform: Platform, stage: Stage) -> None:
    reference = image_of(platform, stage.image)
    task.set_container_image(reference)
    task.set_env_variable(IMAGE_VARIABLE, reference)
    kubernetes.set_image_pull_policy(task, platform.images.pull_policy)
    if platform.images.pull_secrets:
        kubernetes.set_image_pull_secrets(task, list(platform.images.pull_secrets))


def _ask_for_resources(task: dsl.PipelineTask, own: StagePlatform) -> None:
    """Requests equal limits: a training that is throttled or evicted costs more than a pod that waits."""
    if own.cpu is not None:
        task.set_cpu_request(own.cpu).set_cpu_limit(own.cpu)
    if own.memory is not None:
        task.set_memory_request(own.memory).set_memory_limit(own.memory)
    if own.gpu is not None:
        task.set_accelerator_type(own.gpu.resource).set_accelerator_limit(own.gpu.count)
        task.set_env_variable(GPUS_VARIABLE, str(own.gpu.count))


def _mount(
    task: dsl.PipelineTask, platform: Platform, stage: Stage, shm_size: str | None, location: str | None
) -> None:
    """Volumes; what is downloaded is kept on one of them between runs.

    A pod with a claim that is missing or not bound is never scheduled. Preflight, which is to tell so, mounts none;
    report-status mounts that of the run's scratch space, which it removes.
    """
    cache, work = platform.volumes.model_cache, platform.volumes.work
    needed = stage.part != "cluster"
    if stage.name == "report-status" and location is not None:
        needed = platform.volumes.keep(location)
    if work is not None and needed:
        kubernetes.mount_pvc(task, work.claim, work.path, work.sub_path)
    if stage.loads_models_or_data:
        if cache is not None:
            kubernetes.mount_pvc(task, cache.claim, cache.path, cache.sub_path)
        for name, value in cache_variables(platform).items():
            task.set_env_variable(name, value)
    if shm_size is not None:
        kubernetes.empty_dir_mount(task, "shm", "/dev/shm", medium="Memory", size_limit=shm_size)


def _hand_secrets(task: dsl.PipelineTask, platform: Platform, stage: Stage) -> None:
    """Secrets as environment variables; a pod whose required key is missing does not start."""
    for kind, required in _REQUIRED_KEYS.items():
        name = getattr(platform.secrets, kind)
        if name is None or (kind == "webhook" and stage.part != "cluster"):
            continue
        if kind == "hugging_face" and not (stage.loads_models_or_data or stage.name == "preflight"):
            continue
        starts = stage.part == "cluster"  # whatever is missing, to report it
        kubernetes.use_secret_as_env(task, name, {key: key for key in required}, optional=starts)
        if optional := _OPTIONAL_KEYS[kind]:
            kubernetes.use_secret_as_env(task, name, {key: key for key in optional}, optional=True)


def _restrict(task: dsl.PipelineTask, platform: Platform, own: StagePlatform) -> None:
    """On which nodes, as whom, and under which labels the pod runs."""
    for key, value in (own.node_selector or {}).items():
        kubernetes.add_node_selector(task, key, value)
    for one in own.tolerations or ():
        kubernetes.add_toleration(task, **one.model_dump())
    security = platform.security_context
    kubernetes.set_security_context(
        task,
        run_as_user=security.run_as_user,
        run_as_group=security.run_as_group,
        run_as_non_root=security.run_as_non_root,
    )
    for key, value in platform.labels.items():
        kubernetes.add_pod_label(task, key, value)
    for key, value in platform.annotations.items():
        kubernetes.add_pod_annotation(task, key, value)


def _bound_and_repeat(task: dsl.PipelineTask, own: StagePlatform) -> None:
    """KFP cannot look at the exit code: a wrong configuration, which fails at once, is tried again too.

    What KFP calls `backoff_max_duration` is Argo's `backoff.maxDuration`: no cap of a pause, but a window from the
    first try's start, past which none is begun and one that runs is ended (kubeflow/pipelines issue 14245).
    """
    if own.timeout_seconds is not None:
        kubernetes.set_timeout(task, own.timeout_seconds)
    if own.retries is not None and own.retries.count:
        task.set_retry(
            own.retries.count,
            backoff_duration=f"{own.retries.backoff_seconds}s",
            backoff_factor=own.retries.backoff_factor,
            backoff_max_duration=f"{own.retries.window(own.timeout_seconds)}s",
        )
