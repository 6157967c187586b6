"""What the pod of one stage asks for: `stages` in platform.yaml."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from pipelines.kubernetes_values import Cpu, LabelKey, LabelValue, Memory, ResourceName, Seconds, Size, quantity
from rest_core.config import Section
from rest_core.operations.preflight import surroundings

_DAY = 24 * 3600
_NO_TIMEOUT_SECONDS = 30 * _DAY  # what a try without a time-out is taken to last
_SCHEDULING_SECONDS = _DAY  # what a try may wait for a node
_MOST_PAUSE_SECONDS = 30 * _DAY


class Gpu(Section):
    resource: ResourceName = Field("nvidia.com/gpu", description="Kubernetes resource name")
    count: int = Field(1, ge=0, description="a pod; 0 = none, where stages.default has some")


class Retries(Section):
    """Tries after the first; a stage goes on from its own leftovers."""

    count: int = Field(0, ge=0, le=100)
    backoff_seconds: int = Field(60, ge=0, description="pause before the second try")
    backoff_factor: int = Field(2, ge=1, le=10, description="how much longer each pause is; Argo takes whole numbers")
    window_seconds: int | None = Field(
        None,
        ge=1,
        description="from the start of the first try, after which no try is begun and one that runs is ended; null = "
        "as long as all tries may take",
    )

    @property
    def pauses(self) -> int:
        """Seconds of all pauses together."""
        return sum(self.backoff_seconds * self.backoff_factor**n for n in range(self.count))

    def window(self, timeout_seconds: int | None) -> int:
        """Seconds from the first try's start in which all tries fit, each waiting for a node and then running."""
        if self.window_seconds is not None:
            return self.window_seconds
        a_try = _SCHEDULING_SECONDS + (timeout_seconds or _NO_TIMEOUT_SECONDS)
        return (self.count + 1) * a_try + self.pauses

    @model_validator(mode="after")
    def _pauses_end(self) -> Retries:
        if self.pauses > _MOST_PAUSE_SECONDS:
            raise ValueError(
                f"the pauses between {self.count + 1} tries add up to {self.pauses / 86400:.0f} days; make "
                "backoff_factor or count smaller"
            )
        return self


class Toleration(surroundings.Toleration):
    key: LabelKey | None = None
    value: LabelValue | None = None


class NodeTerm(surroundings.NodeTerm):
    key: LabelKey
    values: tuple[LabelValue, ...] = ()


class StagePlatform(Section):
    """What the pod of one stage asks for; null: the value of `stages.default`, and there the cluster's own."""

    cpu: Cpu | None = Field(None, description="request and limit")
    memory: Memory | None = Field(None, description="request and limit")
    gpu: Gpu | None = None
    shm_size: Size | None = Field(None, description="/dev/shm, memory-backed; counts towards memory")
    node_selector: dict[LabelKey, LabelValue] | None = None
    node_affinity: tuple[NodeTerm, ...] | None = Field(None, description="all that have no weight are required")
    tolerations: tuple[Toleration, ...] | None = None
    timeout_seconds: Seconds | None = Field(
        None, description="active deadline of the pod, the pull of its image included"
    )
    retries: Retries | None = None
    nodes: int | None = Field(None, ge=1, description="rest-rl only: more than one makes it a TrainJob")

    @model_validator(mode="after")
    def _shm_is_memory(self) -> StagePlatform:
        require_room_for_shm(self.shm_size, self.memory)
        return self


def require_room_for_shm(shm_size: str | None, memory: str | None) -> None:
    """Refuse a /dev/shm that cannot be filled: what lies there counts towards the pod's memory."""
    if shm_size is not None and memory is not None and quantity(shm_size) > quantity(memory):
        raise ValueError(
            f"shm_size ({shm_size}) is above memory ({memory}), towards which it counts: the pod would be killed "
            "before it is full"
        )


def said(stage: StagePlatform) -> dict[str, Any]:
    """The fields that a stage's section gives."""
    return stage.model_dump(exclude_unset=True, exclude_none=True)
