"""The log of a TrainJob's node. It decides nothing: one that cannot be read is a warning."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from rest_core.errors import described
from rest_core.operations import pods
from rest_core.operations.api_errors import api_errors

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

log = logging.getLogger(__name__)

_LINES = 1000  # of the end of a log, at each look
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+\S*")  # nanoseconds in full: as text they are in order


class NodeLog:
    """The log of one node, continued where the last look ended."""

    def __init__(self, client: TrainerClient, step: str) -> None:
        self._client, self._step = client, step
        self._last = ""  # the moment of the last line
        self._count = 0  # lines so far, of a log without moments

    def new(self, job: Any) -> list[str]:
        """The lines since the last call; nothing where the log cannot be read, as between two starts of the node."""
        what = f"log of {self._step} of TrainJob {job.name}"
        try:
            with api_errors(what):
                return self._new(job)
        except Exception as error:  # a client's own, of whatever a node has printed
            log.warning("%s: cannot be read (%s)", what, described(error))
            return []

    def _new(self, job: Any) -> list[str]:
        from kubeflow.trainer.backends.kubernetes.backend import KubernetesBackend

        backend = self._client.backend
        if not isinstance(backend, KubernetesBackend):
            parts = self._client.get_job_logs(job.name, step=self._step)
            lines = "\n".join(part.rstrip("\n") for part in parts).splitlines()
            begin, self._count = self._count, len(lines)
            return lines[begin:]
        pod = next((one.pod_name for one in job.steps if one.name == self._step and one.status != "Pending"), None)
        if pod is None:
            return []
        # From the API itself: the SDK reads a log whole, and strictly as UTF-8.
        container = re.sub(r"-\d+$", "", self._step)
        return self._after_last(
            pods.read_log(backend.core_api, backend.namespace, pod, container, tail_lines=_LINES, timestamps=True)
        )

    def _after_last(self, lines: list[str]) -> list[str]:
        new, fresh = [], False
        for line in lines:
            moment, _, text = line.partition(" ")
            if _MOMENT.fullmatch(moment):
                fresh = moment > self._last
                self._last = max(moment, self._last)
            else:  # the rest of a line after a carriage return
                text = line
            if fresh:
                new.append(text)
        return new
