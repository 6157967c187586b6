"""The stages of a local run as containers, by kfp.local's DockerRunner, from the images that `make image` builds.

A container finds what a process would find, at the same path: MLflow's store where that is a file, the files that the
configuration names, the caches of downloads. It has this machine's network, so that a server on localhost is reached,
and of the environment what MLflow, S3, Hugging Face and proxies read.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, NotFound
from docker.types import DeviceRequest
from huggingface_hub import get_token
from kfp import local
from requests.exceptions import JSONDecodeError

from components.images import image
from components.runtime import ROOT_VARIABLE
from pipelines.mounts import INSTEAD_OF_ROOT, Needed, hub_cache, refuse_unusable
from rest_core import storage
from rest_core.errors import UserError, one_line
from rest_core.operations.catalogue import PIPELINE
from rest_core.operations.tracking.runs import PIPELINE_VARIABLE, SOURCE_VARIABLE

RUN_LABEL = "rest-pipelines.run"
_SHM_SIZE = "1g"  # Docker's default, 64 MB, is too little for processes that exchange tensors
_ENVIRONMENT = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
    *("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE"),
    *("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("MLFLOW_S3_ENDPOINT_URL", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("OMP_NUM_THREADS", SOURCE_VARIABLE, PIPELINE_VARIABLE, ROOT_VARIABLE),
)


def stage_images() -> dict[str, str]:
    """The image of each stage, by the name of its task."""
    return {stage.name: image(stage.image) for stage in PIPELINE}


def connect() -> docker.DockerClient:
    """A client of the engine that DOCKER_HOST names, else of this machine's, which has the stages' images.

    Raises:
        UserError: no engine answers, or an image is not there.
    """
    try:
        client = docker.from_env()
        there = {tag for found in client.images.list() for tag in found.tags}
    except DockerException as error:
        reason = one_line(error)
        raise UserError(f"no Docker engine answers ({reason}); start it, or leave out --runner docker") from None
    if missing := sorted(set(stage_images().values()) - there):
        raise UserError(f"images that are not built: {', '.join(missing)}; run `make image`")
    return client


def runner(client: docker.DockerClient, places: Sequence[Needed], *, run: str, root: Path) -> local.DockerRunner:
    """kfp's runner for a run; `root` is the pipeline's root, which kfp mounts itself.

    Raises:
        UserError: root runs it, and the root of a run that is resumed is for root alone.
    """
    user = f"{os.getuid()}:{os.getgid()}"
    if os.getuid() == 0:
        user = INSTEAD_OF_ROOT
        refuse_unusable([Needed(root, "--output", written=True)])
    has_gpus = "nvidia" in client.info()["Runtimes"]
    return local.DockerRunner(
        user=user,
        working_dir=str(Path.cwd()),
        environment=environment(os.environ),
        mounts=[place.mount for place in places],
        network_mode="host",
        shm_size=_SHM_SIZE,
        device_requests=[DeviceRequest(count=-1, capabilities=[["gpu"]])] if has_gpus else None,
        labels={RUN_LABEL: run},
    )


def memory(client: docker.DockerClient, run: str) -> int:
    """Bytes of memory that the run's containers have at the moment, as `docker stats` counts them."""
    used = 0
    for container in _running(client, run):
        with contextlib.suppress(NotFound, JSONDecodeError):  # ended since it was listed, or is ending: an empty answer
            figures = container.stats(stream=False, one_shot=True)["memory_stats"]
            if "usage" in figures:  # one that is just starting or ending has none
                details = figures["stats"]
                used += figures["usage"] - details.get("total_inactive_file", details.get("inactive_file", 0))
    return used


def stop(client: docker.DockerClient, run: str, *, seconds: int) -> None:
    """End the run's containers: tell them to, and kill those that have not ended after so many seconds."""
    for container in _running(client, run):
        with contextlib.suppress(NotFound):
            # The first process, the shell that kfp starts a component with, passes no signal on: tell the others.
            container.exec_run(["sh", "-c", "kill -TERM -1"])
            container.stop(timeout=seconds)


def _running(client: docker.DockerClient, run: str) -> list[Any]:
    found: list[Any] = client.containers.list(filters={"label": f"{RUN_LABEL}={run}"}, ignore_removed=True)
    return found


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """What of `variables` a container gets, the hub's token, and where its caches are."""
    given = {name: variables[name] for name in _ENVIRONMENT if name in variables}
    if (token := get_token()) is not None:  # in a file of the user's, which containers do not see
        given.setdefault("HF_TOKEN", token)
    return {**given, "XDG_CACHE_HOME": str(storage.cache_folder().parent), "HF_HUB_CACHE": str(hub_cache())}
