"""What the pods of a run are promised; made from `platform.yaml` when a pipeline is compiled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rest_core.config import Section


class Secret(Section):
    """A Secret or ConfigMap, and the environment variables that it must give."""

    kind: Literal["Secret", "ConfigMap"] = "Secret"
    name: str
    variables: tuple[str, ...]


class FilesOf(Section):
    """A Secret or ConfigMap, and the folder as which pods have it."""

    kind: Literal["Secret", "ConfigMap"]
    name: str
    path: str


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


class NodeTerm(Section):
    """A requirement, or with a weight a wish, on the labels of a pod's node, as Kubernetes' node affinity has them."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: tuple[str, ...] = ()
    weight: int | None = Field(None, ge=1, le=100, description="null = required")

    @model_validator(mode="after")
    def _as_many_values_as_it_takes(self) -> NodeTerm:
        if self.operator in ("In", "NotIn") and not self.values:
            raise ValueError(f"operator {self.operator} takes values: [a, b]")
        if self.operator in ("Exists", "DoesNotExist") and self.values:
            raise ValueError(f"operator {self.operator} takes no values")
        if self.operator in ("Gt", "Lt") and not (len(self.values) == 1 and self.values[0].isdecimal()):
            raise ValueError(f"operator {self.operator} takes one whole number as its value: ['4']")
        return self


class Asked(Section):
    """What the pods of a stage ask of their nodes."""

    stage: str
    cpu: str | None = None
    memory: str | None = None
    resource: str = Field("nvidia.com/gpu", description="of its GPUs")
    count: int = Field(0, description="GPUs a node")
    nodes: int = 1
    node_selector: dict[str, str] = Field(default_factory=dict)
    node_affinity: tuple[NodeTerm, ...] = ()
    tolerations: tuple[Toleration, ...] = ()

    @property
    def resources(self) -> dict[str, str]:
        """Of one node, as Kubernetes names and writes them."""
        given = {"cpu": self.cpu, "memory": self.memory, self.resource: str(self.count) if self.count else None}
        return {name: size for name, size in given.items() if size is not None}

    def __str__(self) -> str:
        parts = [f"{self.count} x {self.resource}"] if self.count else []
        parts += [f"{name} {size}" for name, size in (("cpu", self.cpu), ("memory", self.memory)) if size]
        parts += [f"{key}={value}" for key, value in self.node_selector.items()]
        return " and ".join(parts) or "any room"


class Surroundings(Section):
    secrets: tuple[Secret, ...] = ()
    files: tuple[FilesOf, ...] = ()
    ca_bundle: str | None = Field(None, description="a file below one of them")
    mounts: tuple[Mount, ...] = ()
    asked: tuple[Asked, ...] = ()
    without_gpu: tuple[str, ...] = Field(
        (), description="GPU stages that were switched off when the pipeline was compiled: their pods have no GPU"
    )

    def volume_of(self, place: str) -> str | None:
        """The claim of the volume that a path lies on."""
        found = [one for one in self.mounts if f"{place}/".startswith(f"{one.path.rstrip('/')}/")]
        return max(found, key=lambda one: len(one.path)).claim if found else None
