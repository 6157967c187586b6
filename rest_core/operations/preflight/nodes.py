"""Nodes: whether the cluster has those that a stage's pods ask for; nothing is taken of them."""

from __future__ import annotations

from typing import Any

from kubernetes.utils.quantity import parse_quantity

from rest_core.config import ModelConfig, RlConfig, SftConfig
from rest_core.errors import UserError
from rest_core.operations import pods
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight import gpu
from rest_core.operations.preflight.surroundings import Asked, NodeTerm, Toleration

_MEMORY_LABEL = "nvidia.com/gpu.memory"  # MiB a GPU, from NVIDIA's GPU feature discovery
_PRODUCT_LABEL = "nvidia.com/gpu.product"


def check(asked: Asked, model: ModelConfig, sft: SftConfig, rl: RlConfig, *, model_is_here: bool = True) -> str:
    """Look for nodes that a stage's pods fit on, by what nodes have when nothing else runs there, and their labels.

    Args:
        asked: what the stage's pods ask for.
        model, sft, rl: decide how much memory a GPU must have.
        model_is_here: whether the model can be looked at from here; without it memory is not compared.
    """
    api, _ = pods.connect()
    let_in = [node for node in pods.nodes(api) if _lets_in(node, asked)]
    found = [node for node in let_in if all(_has(node, name) >= size for name, size in _sizes(asked).items())]
    if len(found) < asked.nodes:
        raise NotAllowed(
            f"{len(found)} of {asked.nodes} nodes with {asked} at the moment ({_lack(asked, let_in)}); the stage waits "
            "until a pool grows, for ever where none does (check its section of platform.yaml)"
        )
    if not asked.count:
        return f"{len(found)} nodes have {asked}"
    labels = [node.metadata.labels or {} for node in found]
    products = ", ".join(sorted({one.get(_PRODUCT_LABEL, "GPU of unknown type") for one in labels}))
    need = gpu.least_memory(asked, model, sft, rl) if model_is_here else None
    sizes = sorted(int(one[_MEMORY_LABEL]) for one in labels if _MEMORY_LABEL in one)
    if need is not None and len(sizes) == len(labels):
        least = sizes[-asked.nodes]  # of the nodes that the stage would have at best
        if least * 2**20 < need.total:
            remedy = gpu.remedy(asked.stage)
            raise UserError(f"{asked.stage} needs {need}; {products} has {least / 1024:.0f} GiB; {remedy}")
    return f"{len(found)} nodes have {asked} ({products})" + (f"; {asked.stage} needs {need}" if need else "")


def _sizes(asked: Asked) -> dict[str, Any]:
    """What one node must have of each resource (Decimal)."""
    return {name: parse_quantity(size) for name, size in asked.resources.items()}


def _has(node: Any, resource: str) -> Any:
    return parse_quantity((node.status.allocatable or {}).get(resource, "0"))


def _lack(asked: Asked, let_in: list[Any]) -> str:
    """What the nodes that the pod may run on have too little of."""
    if not let_in:
        return "no node is open to its node_selector, node_affinity and tolerations"
    short = []
    for name, size in asked.resources.items():
        most = max((str((node.status.allocatable or {}).get(name, "0")) for node in let_in), key=parse_quantity)
        if parse_quantity(most) < parse_quantity(size):
            short.append(f"{name}: {size} asked for, a node has {most} at most")
    return ", ".join(short) or f"of {len(let_in)} nodes that are open to it too few have all of that"


def _lets_in(node: Any, asked: Asked) -> bool:
    """Whether a pod of the stage may be scheduled on a node (V1Node), if there is room."""
    labels = node.metadata.labels or {}
    # Device plugins' taints that name the resource are tolerated by admission (ExtendedResourceToleration).
    taints = [taint for taint in node.spec.taints or () if taint.key != asked.resource]
    return (
        all(labels.get(key) == value for key, value in asked.node_selector.items())
        and all(_matches(labels, term) for term in asked.node_affinity if term.weight is None)
        and not node.spec.unschedulable
        and all(
            any(_tolerates(one, taint) for one in asked.tolerations)
            for taint in taints
            if taint.effect in ("NoSchedule", "NoExecute")
        )
    )


def _matches(labels: dict[str, str], term: NodeTerm) -> bool:
    value = labels.get(term.key)
    match term.operator:
        case "In":
            return value in term.values
        case "NotIn":
            return value not in term.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    if value is None or not value.lstrip("-").isdecimal():
        return False
    return int(value) > int(term.values[0]) if term.operator == "Gt" else int(value) < int(term.values[0])


def _tolerates(one: Toleration, taint: Any) -> bool:
    return (
        (one.effect is None or one.effect == taint.effect)
        and (one.key is None or one.key == taint.key)
        and (one.operator == "Exists" or (one.value or "") == (taint.value or ""))
    )
