"""Logs of a stage's pods, from one of two places.

- The Kubernetes API, while a pod exists: pods carry the run's id as the label `pipeline/runid`, and Argo's annotation
  says which node of the workflow, so which stage, each one is. It also gives the reason why a pod has not started.
- KFP's API server at `/apis/v1alpha1/runs/{run}/nodes/{pod}/log`, which its OpenAPI file leaves out: the pod's log, and
  after the pod is gone the archived one, where Argo archives logs (`archiveLogs`) and KFP knows where
  (`ARCHIVE_CONFIG_LOG_PATH_PREFIX`). It needs no access to Kubernetes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import kfp_server_api
import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from pipelines.cluster.client import CONNECT_SECONDS, Cluster
from pipelines.cluster.errors import ApiError, connection_problem, message, one_line, reason
from pipelines.cluster.network import use_environment
from pipelines.cluster.runs import StageProgress, stages, state_text
from rest_core.errors import UserError, nearest
from rest_core.operations import pods

_NODE_ANNOTATION = "workflows.argoproj.io/node-name"
_CONTAINER = "main"  # the stage's; beside it are Argo's "init" and "wait"
_READ_SECONDS = 30.0
_CHUNK_BYTES = 65536
_KUBERNETES_ERRORS = (kubernetes_client.ApiException, urllib3.exceptions.HTTPError)


@dataclass(frozen=True)
class PodLog:
    """The log of one pod: an attempt at a stage.

    Attributes:
        pod: its name.
        state: of the pod, with the reason if it was killed ("failed: OOMKilled") or has not started.
        text: of the log, in pieces as they arrive; empty if the pod has not started.
        error: why the log cannot be read.
    """

    pod: str
    state: str
    text: Iterable[str] = ()
    error: UserError | None = None


def choose_stage(run: kfp_server_api.V2beta1Run, name: str | None) -> StageProgress:
    """The stage `name`; None: the one that failed, else one that is running, else the last that began.

    Raises:
        UserError: there is no such stage, or none has begun.
    """
    known = {stage.name: stage for stage in stages(run)}
    begun = [stage for stage in known.values() if stage.states]
    if name is not None and name not in known:
        raise UserError(
            f"run {run.display_name} has no stage {name!r}{nearest(name, known)} (stages: {', '.join(known) or 'none'})"
        )
    if name is not None:
        return known[name]
    if not begun:
        raise UserError(f"run {run.display_name} is {state_text(run.state)}: no stage of it has begun")
    return next((stage for state in ("FAILED", "RUNNING") for stage in begun if stage.state == state), begun[-1])


def read(cluster: Cluster, run_id: str, stage: StageProgress, *, tail: int | None, follow: bool) -> list[PodLog]:
    """The logs of a stage's pods, the first attempt first.

    Args:
        cluster: where.
        run_id: of the run.
        stage: one of its stages.
        tail: at most this many lines a pod, its last; None = all.
        follow: read on until the pods that exist now have ended; needs access to Kubernetes.

    Raises:
        UserError: no log can be read; the message says which places were tried.
    """
    if stage.state == "CACHED":
        raise UserError(
            f"stage {stage.name} was not run: its result came from KFP's cache, with the log of another run"
        )
    try:
        api = _kubernetes()
        existing = _pods(api, cluster.namespace, run_id, stage.name)
        why = f"no pod of it is left in the namespace {cluster.namespace}"
    except UserError as error:
        existing, why = [], str(error)
    if existing:
        logs = [_from_kubernetes(api, pod, tail=tail, follow=follow) for pod in existing]
    elif follow:
        raise UserError(f"stage {stage.name} cannot be followed: {why}")
    elif stage.pods:
        logs = [_from_kfp(cluster, run_id, pod, state_text(stage.state), tail=tail, why=why) for pod in stage.pods]
    else:
        cause = f" ({stage.error})" if stage.error else ""
        raise UserError(f"stage {stage.name} has no log: {why}, and KFP names no pod that ran its code{cause}")
    if logs[-1].error is not None and all(log.error for log in logs):
        raise logs[-1].error
    return logs


def _kubernetes() -> kubernetes_client.CoreV1Api:
    """The Kubernetes API with the identity of this pod, else of the kubeconfig."""
    settings = kubernetes_client.Configuration()
    settings.retries = urllib3.Retry(total=2, backoff_factor=0.5)
    try:
        kubernetes_config.load_incluster_config(client_configuration=settings)
    except kubernetes_config.ConfigException:
        try:
            kubernetes_config.load_kube_config(client_configuration=settings)
        except Exception as error:  # the loader checks nothing of a kubeconfig's shape
            raise UserError(f"there is no access to Kubernetes ({one_line(error)})") from None
        use_environment(settings)
    return kubernetes_client.CoreV1Api(kubernetes_client.ApiClient(settings))


def _pods(api: kubernetes_client.CoreV1Api, namespace: str, run_id: str, stage: str) -> list[Any]:
    """Pods of the stage, the oldest first: those of its code, or else those of its driver."""
    selector, timeout = f"{pods.RUN_ID_LABEL}={run_id}", (CONNECT_SECONDS, _READ_SECONDS)
    try:
        listed = api.list_namespaced_pod(namespace, label_selector=selector, _request_timeout=timeout).items
    except _KUBERNETES_ERRORS as error:
        raise UserError(f"Kubernetes lists no pods in the namespace {namespace} ({_why(error)})") from None
    except ValueError:  # an answer of another shape, or a token that no header can have, which must not be shown
        raise UserError(f"what answers at {api.api_client.configuration.host} is not the Kubernetes API") from None
    paths = [(pod, _path(pod)) for pod in sorted(listed, key=lambda pod: pod.metadata.creation_timestamp)]
    code = [pod for pod, path in paths if stage in path]
    return code or [pod for pod, path in paths if f"{stage}-driver" in path]


def _path(pod: Any) -> list[str]:
    """Tasks from the root to the pod's own: "wf.root.rest-rl.executor(1)" → [wf, root, rest-rl, executor]."""
    name = (pod.metadata.annotations or {}).get(_NODE_ANNOTATION, "")
    return re.sub(r"\([^)]*\)", "", name).split(".")


def _from_kubernetes(api: kubernetes_client.CoreV1Api, pod: Any, *, tail: int | None, follow: bool) -> PodLog:
    name, namespace = pod.metadata.name, pod.metadata.namespace
    state, started = _pod_state(pod)
    if not started:
        return PodLog(name, state)
    timeout = (CONNECT_SECONDS, None if follow else _READ_SECONDS)
    options = {"container": _CONTAINER, "follow": follow, "tail_lines": tail, "_preload_content": False}
    try:
        stream = api.read_namespaced_pod_log(name, namespace, _request_timeout=timeout, **options)
    except _KUBERNETES_ERRORS as error:
        explanation = (
            f"pod {name}, {state}: its log cannot be read ({_why(error)}): the account needs `get` on pods/log in the "
            f"namespace {namespace}, or try `kubectl logs -n {namespace} {name} -c {_CONTAINER}`"
        )
        return PodLog(name, "no log", error=UserError(explanation))
    return PodLog(name, state, _text(stream, name))


def _pod_state(pod: Any) -> tuple[str, bool]:
    """The pod's state for people, and whether its container has written anything."""
    phase = (pod.status.phase or "unknown").lower()
    why, details = pods.reason(pod)
    main = next((status for status in pod.status.container_statuses or [] if status.name == _CONTAINER), None)
    started = main is not None and (main.state.waiting is None or main.restart_count > 0)
    if not started and why is None:  # as of a pod that no node can take
        unmet = [one for one in pod.status.conditions or [] if one.status == "False" and one.message]
        why, details = (unmet[0].reason, unmet[0].message) if unmet else (None, None)
    state = ": ".join(one_line(part) for part in (phase, why, details) if part)
    ended = main.state.terminated if main is not None else None
    return f"{state}, exit code {ended.exit_code}" if ended and ended.exit_code else state, started


def _from_kfp(cluster: Cluster, run_id: str, pod: str, state: str, *, tail: int | None, why: str) -> PodLog:
    try:
        stream = cluster.stream("/apis/v1alpha1/runs/{run_id}/nodes/{pod}/log", run_id=run_id, pod=pod)
    except ApiError as error:
        if not error.temporary and error.status != 404:
            raise
        explanation = (
            f"no log of pod {pod} was found: {why}, and KFP has none in its archive ({error.fact}); logs stay readable "
            "after a pod is gone where Argo archives them (docs/commands.md, Logs)"
        )
        return PodLog(pod, "no log", error=UserError(explanation))
    text = _text(stream, pod)
    return PodLog(pod, state, text if tail is None else _last_lines(text, tail))


def _last_lines(text: Iterable[str], count: int) -> Iterator[str]:
    yield from "".join(text).splitlines(keepends=True)[-count:]


def _text(stream: urllib3.BaseHTTPResponse, pod: str) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    try:
        # Not stream(), which keeps back what came last before the connection was closed.
        while chunk := stream.read1(_CHUNK_BYTES, decode_content=True):
            yield decode(chunk)
    except urllib3.exceptions.HTTPError as error:
        raise UserError(f"the log of pod {pod} broke off ({reason(error)}): try again") from None
    finally:
        stream.release_conn()


def _why(error: Exception) -> str:
    """The Kubernetes API's message, or why it does not answer."""
    if not isinstance(error, kubernetes_client.ApiException):
        problem, advice = connection_problem(error) or (reason(error), "")
        return f"{problem}: {advice}" if advice else problem
    return f"{error.status}: {message(error.body or '') or error.reason}"
