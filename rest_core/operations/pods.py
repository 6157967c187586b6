"""The run that this pod belongs to, and its pods, claims, TrainJobs and cluster as the Kubernetes API knows them.

The API is asked as the pod's own service account (`deploy/` grants what is needed). Where this is no pod, where
its account may not ask, and where the API does not answer, `NotAllowed` says so and the caller continues without.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_core.errors import UserError, one_line
from rest_core.manifest import IMAGE_VARIABLE as IMAGE_VARIABLE
from rest_core.operations.api_errors import Missing, api_errors
from rest_core.operations.names import TRAINJOBS, run_label

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

RUN_ID_VARIABLE = "KFP_RUN_ID"  # set from the pod's label by the pipeline (pipelines/placement.py)
GPUS_VARIABLE = "REST_GPUS"  # the GPUs that the pod was given, likewise
RUN_ID_LABEL = "pipeline/runid"  # KFP's own
# The labels that Kubernetes recommends (kubernetes.io/docs/concepts/overview/working-with-objects/common-labels).
PART_OF_LABEL, PROJECT = "app.kubernetes.io/part-of", "rest-pipelines"
STAGE_LABEL = "app.kubernetes.io/component"

_EMPTY_DIR = "kubernetes.io~empty-dir"  # in the path of a pod's own volume on its node
_CONTAINER = "main"  # of KFP's pods, where the component runs
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_TIMEOUT = {"_request_timeout": 10}  # seconds
_READ_BYTES = 16 << 20  # of a log: more than the kubelet keeps of it
_KEPT_BYTES = 1 << 20
_NO_REASONS = ("Error", "Completed", "PodInitializing")  # they say no more than that it ended, or waits for others


class NotAllowed(UserError):
    """The Kubernetes API cannot be asked from here; the message says why."""


@dataclass(frozen=True)
class PodEnd:
    """How the last pod of a stage ended."""

    name: str
    stage: str
    failed: bool
    reason: str | None  # as Kubernetes names it: OOMKilled, Evicted, DeadlineExceeded, ErrImagePull …
    exit_code: int | None
    log: tuple[str, ...]  # the last lines; none where they are gone
    waited_for: str | None = None  # where its container never began: what it was waiting for


def run_id() -> str | None:
    """The id of the KFP run that this process belongs to; None outside of a cluster."""
    return os.environ.get(RUN_ID_VARIABLE) or None


def on_volume(place: Path, mounts: Path = Path("/proc/self/mountinfo")) -> bool:
    """Whether a file or folder of this pod lies on a volume that outlives it.

    Args:
        place: which need not be there yet.
        mounts: the kernel's list, proc(5).
    """
    found: dict[Path, tuple[str, str]] = {}
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        before, _, after = line.partition(" - ")
        root, point = (re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), part) for part in before.split()[3:5])
        found[Path(point)] = root, after.split()[0]
    place = place.resolve()
    mount = next(one for one in (place, *place.parents) if one in found)
    root, kind = found[mount]
    return mount != Path("/") and kind not in ("overlay", "tmpfs") and _EMPTY_DIR not in root


def require_lasting(name: str, location: str) -> None:
    """Raise `UserError` where this is a pod and the setting `name` is a folder of its own disk; s3:// is none."""
    if run_id() and "://" not in location and not on_volume(Path(location).expanduser()):
        raise UserError(
            f"{name}: {location} is on no volume, so that it is gone with its pod; give an s3:// URI, or a folder of a "
            "volume in platform.yaml"
        )


def gpus_given() -> int:
    """The number of GPUs that the pod was given by `platform.yaml`; 0 where none or outside of a cluster."""
    return int(os.environ.get(GPUS_VARIABLE) or 0)


def connect() -> tuple[CoreV1Api, str]:
    """A client as the pod's service account, and the pod's namespace."""
    from kubernetes import client, config

    try:
        config.load_incluster_config()
        namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise NotAllowed(f"there is no service account here ({one_line(error)})") from None
    return client.CoreV1Api(), namespace


def ends(api: CoreV1Api, namespace: str, run: str, *, lines: int) -> dict[str, PodEnd]:
    """How the last pod of each stage of a run ended, by the stage's name; stages whose pods are gone are not in it.

    Args:
        run: the KFP run's id.
        lines: how many lines of the failed pods' logs."""
    selector = f"{RUN_ID_LABEL}={run},{PART_OF_LABEL}={PROJECT},{STAGE_LABEL}"
    with _asking("list pods"):
        found = api.list_namespaced_pod(namespace, label_selector=selector, **_TIMEOUT).items
    by_age = sorted(found, key=lambda pod: pod.metadata.creation_timestamp)
    last = {pod.metadata.labels[STAGE_LABEL]: pod for pod in by_age}
    return {stage: _end(api, namespace, pod, stage, lines) for stage, pod in last.items()}


def _end(api: CoreV1Api, namespace: str, pod: Any, stage: str, lines: int) -> PodEnd:
    states = [one.state for one in pod.status.container_statuses or () if one.name == _CONTAINER]
    ended = states[0].terminated if states else None
    failed = pod.status.phase == "Failed" or (ended is not None and ended.exit_code != 0)
    log: list[str] = []
    if failed:
        try:
            with api_errors("read logs", missing="the cluster has deleted it"):
                log = read_log(api, namespace, pod.metadata.name, _CONTAINER, tail_lines=lines)
        except UserError as problem:
            log = [f"(the log cannot be read: {problem})"]
    waited_for = _awaited(pod, states[0] if states else None) if failed else None
    return PodEnd(pod.metadata.name, stage, failed, reason(pod)[0], ended and ended.exit_code, tuple(log), waited_for)


def _awaited(pod: Any, state: Any) -> str | None:
    """What a pod that has ended was waiting for, its main container not having begun; None where it had."""
    if state is not None and (state.running or state.terminated):
        return None
    before = [one.state for one in pod.status.init_container_statuses or ()]
    if pod.spec is None or pod.spec.node_name is None:
        return "a node"
    if any(one.terminated is None for one in before):
        return "the containers that begin before its own, or their images"
    image = next((one.image for one in pod.spec.containers if one.name == _CONTAINER), "its image")
    return f"the pull of {image}, or its volumes (the pod's timeout_seconds counts both)"


def reason(pod: Any) -> tuple[str | None, str | None]:
    """Why a pod has ended or has not begun: as Kubernetes names it (OOMKilled, Evicted, ErrImagePull …), its message.

    The pod's own come first: of one that was evicted or ran out of time, its container says at most that it was killed.
    Then that of its main container, or of one that must end before that begins.
    """
    if pod.status.reason:
        return pod.status.reason, pod.status.message
    main = [one.state for one in pod.status.container_statuses or () if one.name == _CONTAINER]
    before = [one.state for one in pod.status.init_container_statuses or ()]
    for state in (*main, *before):
        why = state.terminated or state.waiting
        if why is not None and why.reason and why.reason not in _NO_REASONS:
            return why.reason, None if state.terminated else why.message
    return None, None


def read_log(api: CoreV1Api, namespace: str, pod: str, container: str, **selection: Any) -> list[str]:
    """The last lines of a container's log, whatever bytes it has printed. The client's own exceptions pass.

    Args:
        selection: `tail_lines`, `timestamps`, as the client has them.
    """
    # Not as text: the client decodes strictly, and makes Python objects of a log that is JSON. Not by `limit_bytes`
    # alone: that would cut the end off.
    answer = api.read_namespaced_pod_log(
        pod, namespace, container=container, limit_bytes=_READ_BYTES, _preload_content=False, **_TIMEOUT, **selection
    )
    end = b""
    try:
        for part in answer.stream(1 << 16):
            end = (end + part)[-_KEPT_BYTES:]
    finally:
        answer.release_conn()
    return end.decode("utf-8", errors="replace").rstrip().splitlines()


def nodes(api: CoreV1Api) -> list[Any]:
    """The cluster's nodes (V1Node)."""
    with _asking("list nodes"):
        return list(api.list_node(**_TIMEOUT).items)


def claim(api: CoreV1Api, namespace: str, name: str) -> Any | None:
    """A V1PersistentVolumeClaim; None where there is none of this name."""
    return _found("persistentvolumeclaims", api.read_namespaced_persistent_volume_claim, name, namespace)


def binds_when_mounted(api: CoreV1Api, storage_class: str) -> bool:
    """Whether claims of a storage class stay Pending until a pod mounts them."""
    from kubernetes.client import StorageV1Api

    found = _found("storageclasses", StorageV1Api(api.api_client).read_storage_class, storage_class)
    return found is not None and found.volume_binding_mode == "WaitForFirstConsumer"


def has_training_runtime(api: CoreV1Api, namespace: str, name: str) -> bool:
    """Whether Kubeflow Trainer has a runtime of this name, for the namespace or for the whole cluster."""
    from kubernetes.client import CustomObjectsApi

    objects, version = CustomObjectsApi(api.api_client), ("trainer.kubeflow.org", "v1alpha1")
    own, shared = "trainingruntimes", "clustertrainingruntimes"
    if _found(own, objects.get_namespaced_custom_object, *version, namespace, own, name):
        return True
    try:
        return _found(shared, objects.get_cluster_custom_object, *version, shared, name) is not None
    except NotAllowed:  # the stage, which is the same service account, could not use it either
        return False


def delete_train_jobs(pipeline_run: str, namespace: str | None) -> tuple[list[str], list[str]]:
    """Delete the TrainJobs of a pipeline run; returns the names of those deleted, and why others could not be.

    They are left where their stage was killed or stopped. The exit task has no SDK of Kubeflow Trainer.

    Args:
        pipeline_run: key of the pipeline run.
        namespace: where its pods run; None = this pod's own.
    """
    from kubernetes.client import CustomObjectsApi

    connected, own = connect()
    api = CustomObjectsApi(connected.api_client)
    group, version, plural = TRAINJOBS
    place = (group, version, namespace or own, plural)
    selector = ",".join(f"{key}={value}" for key, value in run_label(pipeline_run).items())
    try:
        with api_errors(f"TrainJobs with {selector}"):
            found = api.list_namespaced_custom_object(*place, label_selector=selector, **_TIMEOUT)
    except Missing:  # the cluster has no Kubeflow Trainer
        return [], []
    deleted, problems = [], []
    for name in (str(item["metadata"]["name"]) for item in found["items"]):
        try:
            with api_errors(f"TrainJob {name}"):
                api.delete_namespaced_custom_object(*place, name=name, **_TIMEOUT)
            deleted.append(name)
        except Missing:  # it has gone by itself
            continue
        except UserError as problem:
            problems.append(str(problem))
    return deleted, problems


def _found(kind: str, get: Callable[..., Any], *arguments: str) -> Any | None:
    """The object that `get` gets; None where there is none."""
    try:
        with _asking(f"get {kind}"):
            return get(*arguments, **_TIMEOUT)
    except Missing:
        return None


@contextmanager
def _asking(to: str) -> Iterator[None]:
    try:
        with api_errors(to):
            yield
    except Missing:
        raise
    except UserError as problem:
        raise NotAllowed(str(problem)) from None
