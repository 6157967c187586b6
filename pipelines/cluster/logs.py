"""What the pods of a run wrote.

KFP's API (v2beta1) has no endpoint for logs. Two places have them:

- The Kubernetes API, while a pod exists: pods carry the run's id as the label `pipeline/runid`, and Argo's annotation
  says which node of the workflow, so which stage, each one is. It gives the reason, too, why a pod has not started.
- KFP's API server at `/apis/v1alpha1/runs/{run}/nodes/{pod}/log`, which its OpenAPI file leaves out: the pod's log, and
  after the pod is gone the archived one, where Argo archives logs (`archiveLogs`) and KFP knows where
  (`ARCHIVE_CONFIG_LOG_PATH_PREFIX`). It needs no access to Kubernetes.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import kfp_server_api
import urllib3
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from pipelines.cluster import kubeconfig
from pipelines.cluster.connection import Cluster
from pipelines.cluster.errors import ApiError, address, reason
from pipelines.cluster.runs import Stage, stages, word
from pipelines.cluster.transport import CONNECT_SECONDS
from pipelines.cluster.words import one_line
from rest_core.errors import UserError, nearest
from rest_core.operations import pods

_NODE_ANNOTATION = "workflows.argoproj.io/node-name"
_CONTAINER = "main"  # the stage's; beside it are Argo's "init" and "wait"
_READ_SECONDS = 30.0
_PIECE_BYTES = 65536
_LONGEST = 200  # characters of what Kubernetes says
_EARLIEST = datetime.min.replace(tzinfo=UTC)


class NoKubernetes(Exception):
    """The Kubernetes API cannot be asked; the message says why."""


@dataclass(frozen=True)
class PodLog:
    """The log of one pod: an attempt at a stage.

    Attributes:
        pod: its name.
        state: of the pod, with the reason where it was ended ("failed: OOMKilled") or has not started.
        lines: what it wrote, in pieces as they come; empty where it has not started.
        missing: why its log cannot be had.
    """

    pod: str
    state: str
    lines: Iterable[str] = ()
    missing: str | None = None


def choose_stage(run: kfp_server_api.V2beta1Run, name: str | None) -> Stage:
    """The stage `name`; None: the one that failed, else one that goes on, else the last that began.

    Raises:
        UserError: there is no such stage, or none has begun.
    """
    all_stages = stages(run)
    if name is not None:
        for stage in all_stages:
            if stage.name == name:
                return stage
        known = [stage.name for stage in all_stages]
        raise UserError(
            f"run {run.display_name} has no stage {name!r}{nearest(name, known)} (stages: {', '.join(known) or 'none'})"
        )
    begun = [stage for stage in all_stages if stage.states]
    for state in ("FAILED", "RUNNING"):
        for stage in begun:
            if stage.state == state:
                return stage
    if not begun:
        raise UserError(f"run {run.display_name} is {word(run.state)}: no stage of it has begun")
    return begun[-1]


def read(
    cluster: Cluster, run: kfp_server_api.V2beta1Run, stage: Stage, *, tail: int | None = None, follow: bool = False
) -> Iterator[PodLog]:
    """The logs of a stage's pods, the first attempt first.

    Args:
        cluster: where.
        run: the run.
        stage: one of its stages.
        tail: at most this many lines a pod, its last; None = all.
        follow: go on until the pods that are there now have ended; needs access to Kubernetes.

    Raises:
        UserError: the logs are nowhere; the message says where they were looked for.
    """
    if stage.state == "CACHED":
        raise UserError(
            f"stage {stage.name} was not run: its result came from KFP's cache, with the log of another run"
        )
    try:
        api = _kubernetes()
        there = _pods(api, cluster.namespace, str(run.run_id), stage.name)
        if there:
            yield from _with_gaps(there, lambda pod: _from_pod(api, pod, tail=tail, follow=follow))
            return
        why = f"no pod of it is left in the namespace {cluster.namespace}"
    except NoKubernetes as error:
        why = str(error)
    if follow:
        raise UserError(f"stage {stage.name} cannot be followed: {why}")
    if not stage.pods:
        raise UserError(
            f"stage {stage.name} is {word(stage.state)} and has no log: {why}, and KFP names no pod that ran its code"
            + (f" ({stage.error})" if stage.error else "")
        )
    yield from _with_gaps(
        stage.pods,
        lambda pod: PodLog(pod, word(stage.state), _from_kfp(cluster, str(run.run_id), pod, why=why, tail=tail)),
    )


def _with_gaps(attempts: Iterable[Any], read_one: Callable[[Any], PodLog]) -> Iterator[PodLog]:
    """The log of each pod: what one attempt has left is not kept back because that of another is gone.

    Raises:
        UserError: that of the last, where there is no log at all.
    """
    gaps: list[PodLog] = []
    found = False
    last: UserError | None = None
    for pod in attempts:
        try:
            log = read_one(pod)
        except UserError as error:
            last = error
            gaps.append(PodLog(pod if isinstance(pod, str) else pod.metadata.name, "no log", missing=str(error)))
            continue
        yield from gaps
        yield log
        gaps.clear()
        found = True
    if last is not None and not found:
        raise last
    yield from gaps


def _kubernetes() -> kubernetes_client.CoreV1Api:
    """The Kubernetes API as this pod's identity or the kubeconfig has it."""
    settings = kubernetes_client.Configuration()
    settings.retries = urllib3.Retry(total=2, backoff_factor=0.5)
    try:
        kubernetes_config.load_incluster_config(client_configuration=settings)
    except kubernetes_config.ConfigException:
        if not kubeconfig.exists():
            raise NoKubernetes("there is no access to Kubernetes (no service account, no kubeconfig)") from None
        try:
            kubeconfig.load(settings)
        except UserError as error:
            raise NoKubernetes(f"there is no access to Kubernetes ({error})") from None
    return kubernetes_client.CoreV1Api(kubernetes_client.ApiClient(settings))


def _pods(api: kubernetes_client.CoreV1Api, namespace: str, run_id: str, stage: str) -> list[Any]:
    """Pods of the stage, the oldest first: those of its code, or where there are none those of its driver."""
    try:
        listed = api.list_namespaced_pod(
            namespace, label_selector=f"{pods.RUN_ID_LABEL}={run_id}", _request_timeout=(CONNECT_SECONDS, _READ_SECONDS)
        ).items
    except kubernetes_client.ApiException as error:
        raise NoKubernetes(f"Kubernetes does not list pods in the namespace {namespace} ({_refusal(error)})") from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise NoKubernetes(f"Kubernetes at {_host(api)} does not answer ({reason(error)})") from None
    except (ValueError, TypeError, AttributeError):  # the client checks nothing; a header may not be shown
        raise NoKubernetes(f"what answers at {_host(api)} is not the Kubernetes API") from None
    listed.sort(key=lambda pod: pod.metadata.creation_timestamp or _EARLIEST)
    paths = [(pod, _path(pod)) for pod in listed]
    code = [pod for pod, path in paths if stage in path]
    return code or [pod for pod, path in paths if f"{stage}-driver" in path]


def _path(pod: Any) -> list[str]:
    """Tasks from the root to the pod's own: "wf.root.rest-rl.executor(1)" → [wf, root, rest-rl, executor]."""
    name = (pod.metadata.annotations or {}).get(_NODE_ANNOTATION, "")
    return re.sub(r"\([^)]*\)", "", name).split(".")


def _from_pod(api: kubernetes_client.CoreV1Api, pod: Any, *, tail: int | None, follow: bool) -> PodLog:
    name, namespace = pod.metadata.name, pod.metadata.namespace
    state, started = _pod_state(pod)
    if not started:
        return PodLog(name, state)
    try:
        stream = api.read_namespaced_pod_log(
            name,
            namespace,
            container=_CONTAINER,
            tail_lines=tail,
            follow=follow,
            _preload_content=False,
            _request_timeout=(CONNECT_SECONDS, None if follow else _READ_SECONDS),
        )
    except kubernetes_client.ApiException as error:
        raise UserError(
            f"pod {name}, {state}: Kubernetes does not give its log ({_refusal(error)}): the account needs `get` on "
            f"pods/log in the namespace {namespace}, or try `kubectl logs -n {namespace} {name} -c {_CONTAINER}`"
        ) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise UserError(f"pod {name}, {state}: its log cannot be read ({reason(error)}): try again") from None
    return PodLog(name, state, _pieces(stream, name))


def _pod_state(pod: Any) -> tuple[str, bool]:
    """The pod's state for people, and whether its container has written anything."""
    phase = (pod.status.phase or "unknown").lower()
    why, message = pods.reason(pod)
    state = ": ".join(one_line(part, longest=_LONGEST) for part in (phase, why, message) if part)
    main = next((status for status in pod.status.container_statuses or [] if status.name == _CONTAINER), None)
    if main is None or (main.state.waiting is not None and not main.restart_count):
        unmet = next((one for one in pod.status.conditions or [] if one.status == "False" and one.message), None)
        if why is None and unmet is not None:  # as of a pod that no node can take
            state = f"{phase}: {unmet.reason}: {one_line(unmet.message, longest=_LONGEST)}"
        return state, False
    ended = main.state.terminated
    return f"{state}, exit code {ended.exit_code}" if ended and ended.exit_code else state, True


def _from_kfp(cluster: Cluster, run_id: str, pod: str, *, why: str, tail: int | None) -> Iterator[str]:
    """The log from KFP's API server; UserError where it has none."""
    try:
        stream = cluster.client._run_api.api_client.call_api(
            "/apis/v1alpha1/runs/{run_id}/nodes/{node_id}/log",
            "GET",
            path_params={"run_id": run_id, "node_id": pod},
            auth_settings=["Bearer"],
            _preload_content=False,
            _return_http_data_only=True,
        )
    except ApiError as error:
        if not error.passing and error.status != 404:
            raise
        raise UserError(
            f"no log of pod {pod} was found: {why}, and KFP has none in its archive ({error.said}); logs stay readable "
            "after a pod is gone where Argo archives them (docs/commands.md, Logs)"
        ) from None
    text = _pieces(stream, pod)
    return text if tail is None else _last(text, tail)


def _last(pieces: Iterable[str], count: int) -> Iterator[str]:
    """The last lines; also those before the text broke off."""
    text, broken = "", None
    try:
        for piece in pieces:
            text += piece
    except UserError as error:
        broken = error
    yield from text.splitlines(keepends=True)[-count:]
    if broken is not None:
        raise broken


def _pieces(stream: Any, pod: str) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
    try:
        # Not stream(), which keeps back what came last before the connection was closed.
        while piece := stream.read1(_PIECE_BYTES, decode_content=True):
            if text := decode(piece):  # a piece may be less than a character
                yield text
    except urllib3.exceptions.HTTPError as error:
        raise UserError(f"the log of pod {pod} broke off ({reason(error)}): try again") from None
    finally:
        stream.release_conn()


def _host(api: kubernetes_client.CoreV1Api) -> str:
    return address(api.api_client.configuration.host)


def _refusal(error: kubernetes_client.ApiException) -> str:
    try:
        message = json.loads(error.body or "")["message"]
    except (ValueError, KeyError, TypeError):
        message = error.reason
    return f"{error.status}: {one_line(message, longest=_LONGEST)}"
