"""Kubeflow Trainer through its SDK: make, follow and delete a TrainJob, with errors told in one line.

The SDK has three backends (Kubernetes, containers, local processes); what is here works with each of them. Labels, the
deadline and what concerns pods are for Kubernetes alone.
"""

from __future__ import annotations

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rest_core.config import TrainJobConfig
from rest_core.errors import Preempted, UserError, needs_extra
from rest_core.operations.api_errors import Exists, NoAnswer, api_error, one_line, told
from rest_core.operations.launch.labels import TRAINJOBS
from rest_core.operations.launch.launcher import handling_signals
from rest_core.operations.launch.node_log import NodeLog, last_lines
from rest_core.operations.launch.train_on_node import train_on_node

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

log = logging.getLogger(__name__)

COMPLETE, FAILED = "Complete", "Failed"  # the SDK's words
NODE = "node"  # the replicated job and its container, in the TrainingRuntime

_POLL_SECONDS = 15.0
_PATIENCE_SECONDS = 600.0  # with an API that does not answer
_GONE_SECONDS = 120.0  # for a deleted TrainJob and its pods to be gone
_ERROR = re.compile(r"(?:^|\s)error: (.*)")  # as the command line tells its own
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_DEADLINE = "DeadlineExceeded"  # Kubeflow Trainer's word

T = TypeVar("T")


@dataclass(frozen=True)
class Ended:
    """How a TrainJob ended."""

    status: str  # COMPLETE or FAILED
    message: str  # one line: the error that a node told, or that none did
    late: bool  # its deadline has ended it


def connect(namespace: str | None) -> TrainerClient:
    """A client for the cluster that this pod runs in, else for that of kubectl's configuration.

    Raises:
        UserError: the SDK is not installed, or no cluster is configured.
    """
    with needs_extra("nodes"):
        from kubeflow.common.types import KubernetesBackendConfig
        from kubeflow.trainer import TrainerClient
    from kubernetes.config import ConfigException

    try:
        return TrainerClient(KubernetesBackendConfig(namespace=namespace))
    except ConfigException as error:
        raise UserError(f"launch.train_job: no cluster to train on ({one_line(error)})") from None


def accelerate_environment(config_file: Path) -> dict[str, str]:
    """The variables by which `accelerate launch` with a configuration file tells its processes about DDP or FSDP2.

    Kubeflow Trainer starts the processes by torchrun, which says the rest (ranks, addresses).
    """
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    given = launch_command_parser().parse_args(["--config_file", str(config_file), "script"])
    arguments, _, _ = _validate_launch_command(given)  # reads the file; there is no public way to
    made = prepare_multi_gpu_env(arguments)
    return {name: value for name, value in made.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


def create(
    client: TrainerClient,
    name: str,
    settings: TrainJobConfig,
    *,
    location: str,
    environment: Mapping[str, str],
    labels: Mapping[str, str],
) -> None:
    """Make the TrainJob `name`, whose processes run the job described at `location`; one that is there stays.

    Raises:
        UserError: the runtime is not there, or the cluster refuses, or has not answered for ten minutes.
    """
    from kubeflow.trainer import CustomTrainer

    trainer = CustomTrainer(
        func=train_on_node,
        func_args={"job": location},
        image=settings.image,
        num_nodes=settings.nodes,
        resources_per_node=dict(settings.resources) or None,
        env=dict(environment),
    )

    def make() -> None:
        with told(f"TrainingRuntime {settings.runtime}", missing="apply deploy/training-runtime.yaml to its namespace"):
            runtime = client.get_runtime(settings.runtime)
        try:
            with told(f"TrainJob {name}", missing="install Kubeflow Trainer"):
                client.train(runtime=runtime, trainer=trainer, options=_options(client, name, settings, labels))
        except Exists:  # the name says what it trains: made by another try, or by this one, whose answer was lost
            log.info("TrainJob %s is there already", name)

    _patiently(make)


def _options(client: TrainerClient, name: str, settings: TrainJobConfig, labels: Mapping[str, str]) -> list[Any]:
    from kubeflow.trainer import options
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    named = options.Name(name)
    if not isinstance(client.backend, KubernetesBackend):
        return [named]
    mounts = options.ContainerPatch(name=NODE, volume_mounts=list(settings.volume_mounts))
    pod = options.PodSpecPatch(
        service_account_name=settings.service_account,
        volumes=list(settings.volumes) or None,
        containers=[mounts] if settings.volume_mounts else None,
        image_pull_secrets=[{"name": secret} for secret in settings.pull_secrets] or None,
        security_context=dict(settings.security_context) or None,
        node_selector=dict(settings.node_selector) or None,
        tolerations=list(settings.tolerations) or None,
    )
    metadata = {"labels": dict(labels)} | ({"annotations": settings.annotations} if settings.annotations else {})
    template = options.PodTemplatePatch(metadata=metadata, spec=pod)
    node = options.ReplicatedJobPatch(
        name=NODE, template=options.JobTemplatePatch(spec=options.JobSpecPatch(template=template))
    )
    patch = options.JobSetTemplatePatch(spec=options.JobSetSpecPatch(replicated_jobs=[node]))
    return [
        named,
        options.Labels(dict(labels)),
        options.ActiveDeadlineSeconds(settings.deadline_seconds),
        options.RuntimePatch(training_runtime_spec=options.TrainingRuntimeSpecPatch(template=patch)),
    ]


def status(client: TrainerClient, name: str) -> str | None:
    """The status of a TrainJob in the SDK's words; None where there is none of that name."""

    def ask() -> str | None:
        with told(f"TrainJob {name}"):
            try:
                return str(client.get_job(name).status)
            except (RuntimeError, ValueError) as error:
                if _is_missing(error):
                    return None
                raise

    return _patiently(ask)


def _patiently(call: Callable[[], T]) -> T:
    """What `call` returns; tried again for ten minutes while the API does not answer."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return call()
        except NoAnswer as error:
            if time.monotonic() > until:
                raise
            log.warning("%s; tried again in %.0f s", error, _POLL_SECONDS)
            time.sleep(_POLL_SECONDS)


def follow(client: TrainerClient, name: str) -> Ended:
    """Wait for the end of a TrainJob, and log the lines of its first node as they come.

    Raises:
        UserError: it is gone, or the cluster has not answered for ten minutes.
        Preempted: SIGTERM or SIGINT has come; the TrainJob goes on.
    """

    signals: list[signal.Signals] = []
    stop = threading.Event()

    def handler(number: signal.Signals) -> None:
        signals.append(number)
        stop.set()

    output, answered = NodeLog(client, f"{NODE}-0"), time.monotonic()
    with handling_signals(handler):
        while True:
            try:
                with told(f"TrainJob {name}", missing="somebody has deleted it; start the stage again"):
                    job = client.get_job(name)
            except NoAnswer as error:
                if time.monotonic() - answered > _PATIENCE_SECONDS:
                    raise
                log.warning("%s; asked again in %.0f s", error, _POLL_SECONDS)
            else:
                answered = time.monotonic()
                for line in output.new(job):
                    log.info("%s | %s", name, line)
                if job.status in (COMPLETE, FAILED):
                    break
            if stop.wait(_POLL_SECONDS):
                raise Preempted(f"{signals[0].name}: TrainJob {name} goes on; start the stage again to follow it")
    if job.status == COMPLETE:
        return Ended(COMPLETE, "", late=False)
    return Ended(FAILED, _message(client, job), late=_reason(client, name) == _DEADLINE)


def _reason(client: TrainerClient, name: str) -> str | None:
    """Kubeflow Trainer's word for why a TrainJob has failed, which the SDK leaves out; None where it is not known."""
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    backend = client.backend
    if not isinstance(backend, KubernetesBackend):
        return None
    group, version, plural = TRAINJOBS
    try:
        with told(f"TrainJob {name}"):
            found = backend.custom_api.get_namespaced_custom_object(group, version, backend.namespace, plural, name)
    except UserError as error:
        log.warning("%s", error)
        return None
    conditions = found.get("status", {}).get("conditions", [])
    return next((str(one.get("reason")) for one in conditions if one.get("type") == FAILED), None)


def _message(client: TrainerClient, job: Any) -> str:
    """The error that one of the nodes told."""
    for step in job.steps:
        lines = [_COLOURS.sub("", line) for line in last_lines(client, job, step.name)]
        messages = [found[1] for line in lines if (found := _ERROR.search(line)) is not None]
        if messages:
            return messages[-1]
    return "none of its nodes told why (out of memory, or their machine was taken?); their log is above"


def delete(client: TrainerClient, name: str) -> None:
    """Delete a TrainJob and wait until it is gone; nothing happens where there is none."""

    def ask() -> None:
        with told(f"TrainJob {name}"):
            try:
                client.delete_job(name)
            except (RuntimeError, ValueError) as error:
                if not _is_missing(error):
                    raise

    _patiently(ask)
    deadline = time.monotonic() + _GONE_SECONDS
    while status(client, name) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"TrainJob {name}: is not gone {_GONE_SECONDS:.0f} s after it was deleted; look at its pods"
            )
        time.sleep(1)


def _is_missing(error: BaseException) -> bool:
    """Whether the SDK says so: by the API's 404, or in the words of the backends without an API."""
    cause = api_error(error)
    return cause.status == 404 if cause is not None else str(error).startswith("No TrainJob with name")
