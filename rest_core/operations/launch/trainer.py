"""Kubeflow Trainer through its SDK: make, follow and delete a TrainJob.

The SDK has three backends (Kubernetes, containers, local processes), and this module works with each of them. Labels,
the deadline and the settings of pods are for Kubernetes alone.
"""

from __future__ import annotations

import logging
import re
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rest_core.config import TrainJobConfig
from rest_core.errors import Preempted, UserError, needs_extra, one_line
from rest_core.operations.api_errors import Exists, Missing, NoAnswer, api_errors
from rest_core.operations.launch.launcher import handling_signals
from rest_core.operations.launch.node_log import NodeLog
from rest_core.operations.launch.train_on_node import train_on_node
from rest_core.operations.names import TRAINJOBS

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

log = logging.getLogger(__name__)

COMPLETE, FAILED = "Complete", "Failed"  # as the SDK names them
NODE = "node"  # the replicated job and its container, in the TrainingRuntime

# Whatever the runtime says. KFP sets the same on the containers of its own pods.
_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

_POLL_SECONDS = 15.0
_PATIENCE_SECONDS = 600.0  # with an API that does not answer
_GONE_SECONDS = 120.0  # for a deleted TrainJob and its pods to be gone
_ERROR = re.compile(r"(?:^|\s)error: (.*)")  # as the command line reports its own
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

T = TypeVar("T")


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
    """The variables by which `accelerate launch` with a configuration file sets up DDP or FSDP2 in its processes.

    Kubeflow Trainer starts the processes by torchrun, which sets the others (ranks, addresses).
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
        runtime_errors = api_errors(
            f"TrainingRuntime {settings.runtime}", missing="apply deploy/training-runtime.yaml to its namespace"
        )
        with runtime_errors:
            runtime = client.get_runtime(settings.runtime)
        try:
            with api_errors(f"TrainJob {name}", missing="install Kubeflow Trainer"):
                client.train(runtime=runtime, trainer=trainer, options=_options(client, name, settings, labels))
        except Exists:  # the name says what it trains: made by another attempt, or by this one, whose answer was lost
            log.info("TrainJob %s is there already", name)

    _patiently(make)


def _options(client: TrainerClient, name: str, settings: TrainJobConfig, labels: Mapping[str, str]) -> list[Any]:
    from kubeflow.trainer import options
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    named = options.Name(name)
    if not isinstance(client.backend, KubernetesBackend):
        return [named]
    container = options.ContainerPatch(
        name=NODE, volume_mounts=list(settings.volume_mounts) or None, security_context=_CONTAINER_SECURITY
    )
    pod = options.PodSpecPatch(
        service_account_name=settings.service_account,
        volumes=list(settings.volumes) or None,
        containers=[container],
        image_pull_secrets=[{"name": secret} for secret in settings.pull_secrets] or None,
        security_context=dict(settings.security_context) or None,
        node_selector=dict(settings.node_selector) or None,
        affinity=dict(settings.affinity) or None,
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
    """The status of a TrainJob as the SDK names it; None where there is none of that name."""
    try:
        return str(_get(client, name).status)
    except Missing:
        return None


def follow(client: TrainerClient, name: str) -> str | None:
    """Wait for the end of a TrainJob, and log the lines of its first node as they come.

    Returns:
        None where it has ended well, else why it has failed: a node's error in one line, or that its deadline is over.

    Raises:
        UserError: it is gone, or the cluster has not answered for ten minutes.
        Preempted: SIGTERM or SIGINT has come; the TrainJob continues.
    """

    def stop(number: signal.Signals) -> None:
        raise KeyboardInterrupt(number.name)  # which the SDK does not take for an error of its own

    output = NodeLog(client, f"{NODE}-0")
    try:
        with handling_signals(stop):
            while True:
                job = _get(client, name, missing="somebody has deleted it; start the stage again")
                for line in output.new(job):
                    log.info("%s | %s", name, line)
                if job.status == COMPLETE:
                    return None
                if job.status == FAILED:
                    return _missed_deadline(client, name) or _node_error(client, job)
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt as stopped:
        raise Preempted(f"{stopped}: TrainJob {name} continues; start the stage again to follow it") from None


def _missed_deadline(client: TrainerClient, name: str) -> str | None:
    """That its deadline has ended a TrainJob; the SDK leaves the reason out. None for any other reason."""
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    backend = client.backend
    if not isinstance(backend, KubernetesBackend):
        return None
    group, version, plural = TRAINJOBS
    try:
        with api_errors(f"TrainJob {name}"):
            found = backend.custom_api.get_namespaced_custom_object(group, version, backend.namespace, plural, name)
    except UserError as error:
        log.warning("%s", error)
        return None
    conditions = found.get("status", {}).get("conditions", [])
    late = any(one.get("type") == FAILED and one.get("reason") == "DeadlineExceeded" for one in conditions)
    return f"its deadline of {found['spec'].get('activeDeadlineSeconds')} s was over" if late else None


def _node_error(client: TrainerClient, job: Any) -> str:
    """The error that one of the nodes reported."""
    for step in job.steps:
        lines = [_COLOURS.sub("", line) for line in NodeLog(client, step.name).new(job)]
        messages = [found[1] for line in lines if (found := _ERROR.search(line)) is not None]
        if messages:
            return messages[-1]
    return "none of its nodes reported an error (out of memory, or their machine was taken?); their log is above"


def delete(client: TrainerClient, name: str) -> None:
    """Delete a TrainJob and wait until it is gone; nothing happens where there is none."""

    def remove() -> None:
        with api_errors(f"TrainJob {name}"):
            client.delete_job(name)

    try:
        _patiently(remove)
    except Missing:
        return
    deadline = time.monotonic() + _GONE_SECONDS
    while status(client, name) is not None:
        if time.monotonic() > deadline:
            raise UserError(
                f"TrainJob {name}: is not gone {_GONE_SECONDS:.0f} s after it was deleted; look at its pods"
            )
        time.sleep(1)


def _get(client: TrainerClient, name: str, *, missing: str = "") -> Any:
    """The SDK's TrainJob.

    Raises:
        Missing: there is none of that name.
        UserError: the cluster refuses, or has not answered for ten minutes.
    """

    def get() -> Any:
        with api_errors(f"TrainJob {name}", missing=missing):
            return client.get_job(name)

    return _patiently(get)


def _patiently(call: Callable[[], T]) -> T:
    """The result of `call`, which is repeated for ten minutes while the API does not answer."""
    until = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return call()
        except NoAnswer as error:
            if time.monotonic() > until:
                raise
            log.warning("%s; asked again in %.0f s", error, _POLL_SECONDS)
            time.sleep(_POLL_SECONDS)
