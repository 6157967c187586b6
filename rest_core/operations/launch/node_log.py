"""What the nodes of a TrainJob print. A log decides nothing: one that cannot be read is a warning."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rest_core.errors import UserError
from rest_core.operations import pods
from rest_core.operations.api_errors import one_line, told

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

log = logging.getLogger(__name__)

_FIRST_LINES = 1000  # of a log that is joined late
_KEPT_BYTES = 1 << 20  # of what has come since the last look
_OVERLAP_SECONDS = 5  # the API counts whole seconds, by a clock of its own
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\S*")  # nanoseconds in full: as text they are in order


def last_lines(client: TrainerClient, job: Any, step: str) -> list[str]:
    """The end of a node's log; nothing where it cannot be read."""

    def read() -> list[str]:
        backend = _kubernetes(client)
        return _whole(client, job, step) if backend is None else _of_pod(backend, job, step, tail_lines=_FIRST_LINES)

    return _tried(read, job, step)


class NodeLog:
    """The log of one node, read on from where it was left: it may be long, and is looked at for days."""

    def __init__(self, client: TrainerClient, step: str) -> None:
        self._client, self._step = client, step
        self._read_at: float | None = None
        self._last = ""  # the moment of the last line
        self._count = 0  # lines so far, of a log that can only be read whole

    def new(self, job: Any) -> list[str]:
        """The lines since the last call; nothing where the log cannot be read, as between two starts of the node."""
        backend = _kubernetes(self._client)
        return _tried(lambda: self._rest(job) if backend is None else self._since(backend, job), job, self._step)

    def _rest(self, job: Any) -> list[str]:
        lines = _whole(self._client, job, self._step)
        begin = self._count if self._count <= len(lines) else 0  # shorter: the log was begun anew
        self._count = len(lines) or self._count
        return lines[begin:]

    def _since(self, backend: KubernetesBackend, job: Any) -> list[str]:
        now = time.monotonic()
        passed = None if self._read_at is None else math.ceil(now - self._read_at) + _OVERLAP_SECONDS
        selection = {"tail_lines": _FIRST_LINES} if passed is None else {"since_seconds": passed}
        lines = _of_pod(backend, job, self._step, timestamps=True, **selection)
        if lines:
            self._read_at = now
        new, fresh = [], False
        for line in lines:
            moment, _, text = line.partition(" ")
            if _MOMENT.fullmatch(moment):
                fresh = moment > self._last
                self._last = max(moment, self._last)
            else:  # goes on after a carriage return
                text = line
            if fresh:
                new.append(text)
        return new


def _tried(read: Callable[[], list[str]], job: Any, step: str) -> list[str]:
    what = f"log of {step} of TrainJob {job.name}"
    try:
        with told(what):
            return read()
    except UserError as error:
        log.warning("%s", error)
    except Exception as error:  # a client's own, of whatever a node has printed
        log.warning("%s: cannot be read (%s: %s)", what, type(error).__name__, one_line(error))
    return []


def _kubernetes(client: TrainerClient) -> KubernetesBackend | None:
    from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

    return client.backend if isinstance(client.backend, KubernetesBackend) else None


def _of_pod(backend: KubernetesBackend, job: Any, step: str, **selection: Any) -> list[str]:
    """From the API itself: the SDK reads a log whole, and strictly as UTF-8."""
    pod = next((one.pod_name for one in job.steps if one.name == step and one.status != "Pending"), None)
    if pod is None:
        return []
    container = re.sub(r"-\d+$", "", step)
    return pods.read_log(backend.core_api, backend.namespace, pod, container, kept_bytes=_KEPT_BYTES, **selection)


def _whole(client: TrainerClient, job: Any, step: str) -> list[str]:
    return "\n".join(part.rstrip("\n") for part in client.get_job_logs(job.name, step=step)).splitlines()
