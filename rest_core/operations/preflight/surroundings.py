"""What the pods of a run are promised; made from `platform.yaml` when a pipeline is compiled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rest_core.config import Section


class Secret(Section):
    """A Kubernetes Secret, and the environment variables that it must give."""

    name: str
    variables: tuple[str, ...]


class Mount(Section):
    """A PersistentVolumeClaim and where it is mounted."""

    claim: str
    path: str


class Toleration(Section):
    key: str | None = None
    operator: Literal["Equal", "Exists"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _as_kubernetes_has_it(self) -> Toleration:
        if self.operator == "Exists" and self.value:
            raise ValueError("operator Exists takes no value")
        if not self.key and self.operator != "Exists":
            raise ValueError("a toleration without a key must have operator Exists")
        if self.toleration_seconds is not None and self.effect != "NoExecute":
            raise ValueError("toleration_seconds goes with effect NoExecute alone: nothing else ends a pod that runs")
        return self


class Gpus(Section):
    """The GPUs that a stage asks for."""

    stage: str
    resource: str
    count: int = Field(description="a node")
    nodes: int = 1
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class Surroundings(Section):
    secrets: tuple[Secret, ...] = ()
    mounts: tuple[Mount, ...] = ()
    gpus: tuple[Gpus, ...] = ()
    without_gpu: tuple[str, ...] = Field(
        (), description="GPU stages that were switched off when the pipeline was compiled: their pods have no GPU"
    )

    def volume_of(self, place: str) -> str | None:
        """The claim of the volume that a path lies on."""
        found = [one for one in self.mounts if f"{place}/".startswith(f"{one.path.rstrip('/')}/")]
        return max(found, key=lambda one: len(one.path)).claim if found else None
