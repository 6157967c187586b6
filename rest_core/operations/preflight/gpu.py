"""GPUs: whether a node has those that a stage asks for, and whether the one that a stage was given is large enough."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rest_core.config import ModelConfig, RlConfig, SftConfig
from rest_core.data.published import Unreachable
from rest_core.errors import UserError
from rest_core.operations import pods
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight.gpu_memory import GIB, Memory, stage_memory
from rest_core.operations.preflight.surroundings import Gpus, Toleration

_MEMORY_LABEL = "nvidia.com/gpu.memory"  # MiB a GPU, from NVIDIA's GPU feature discovery
_PRODUCT_LABEL = "nvidia.com/gpu.product"


def check_nodes(asked: Gpus, model: ModelConfig, sft: SftConfig, rl: RlConfig, *, model_is_here: bool = True) -> str:
    """Look for nodes that a stage's pods fit on, by the nodes' labels; no GPU is taken.

    Args:
        asked: what the stage's pods ask for.
        model, sft, rl: decide how much memory a GPU must have.
        model_is_here: whether the model can be looked at from here; without it memory is not compared.
    """
    api, _ = pods.connect()
    selected = ", ".join(f"{key}={value}" for key, value in asked.node_selector.items())
    wanted = f"{asked.count} x {asked.resource}{f' and {selected}' if selected else ''}"
    labels = [node.metadata.labels or {} for node in pods.nodes(api) if fits(node, asked)]
    if len(labels) < asked.nodes:
        raise NotAllowed(
            f"{len(labels)} of {asked.nodes} nodes with {wanted} at the moment; the stage waits until a pool grows, "
            "for ever where none does (check resource, node_selector and tolerations)"
        )
    found = ", ".join(sorted({one.get(_PRODUCT_LABEL, "GPU of unknown type") for one in labels}))
    need = _need(asked, model, sft, rl) if model_is_here else None
    sizes = sorted(int(one[_MEMORY_LABEL]) for one in labels if _MEMORY_LABEL in one)
    if need is not None and len(sizes) == len(labels):
        least = sizes[-asked.nodes]  # of the nodes that the stage would have at best
        if least * 2**20 < need.total:
            raise UserError(f"{asked.stage} needs {need}; {found} has {least / 1024:.0f} GiB; {_remedy(asked.stage)}")
    return f"{len(labels)} nodes have {wanted} ({found})" + (f"; {asked.stage} needs {need}" if need else "")


def refuse_without(stage: str) -> str:
    """Refuse a stage that this run has switched on, while its pod was compiled without the GPU that it is to have."""
    raise UserError(
        f"{stage} is switched on, but the pipeline was compiled with it off: its pod has no GPU; compile or submit it "
        "with this run's settings"
    )


def fits(node: Any, asked: Gpus) -> bool:
    """Whether a pod of the stage could be scheduled on a node (V1Node) that has nothing else to do."""
    labels = node.metadata.labels or {}
    # Device plugins' taints that name the resource are tolerated by admission (ExtendedResourceToleration).
    taints = [taint for taint in node.spec.taints or () if taint.key != asked.resource]
    return (
        all(labels.get(key) == value for key, value in asked.node_selector.items())
        and int((node.status.allocatable or {}).get(asked.resource, 0)) >= asked.count
        and not node.spec.unschedulable
        and all(
            any(_tolerates(one, taint) for one in asked.tolerations)
            for taint in taints
            if taint.effect in ("NoSchedule", "NoExecute")
        )
    )


def _tolerates(one: Toleration, taint: Any) -> bool:
    return (
        (one.effect is None or one.effect == taint.effect)
        and (one.key is None or one.key == taint.key)
        and (one.operator == "Exists" or (one.value or "") == (taint.value or ""))
    )


def require_visible() -> int:
    """The number of GPUs that torch sees; a `UserError` where the pod was given more."""
    import torch

    given = pods.gpus_given()
    visible = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if visible < given:
        raise UserError(
            f"this pod was given {given} GPU{'s' if given > 1 else ''}, torch {torch.__version__} sees {visible}: use "
            "the image's CUDA build, and a driver on the node that is new enough for it"
        )
    return visible


def require_memory(source: str | Path, model: ModelConfig, section: SftConfig | RlConfig) -> None:
    """In a training, before anything is loaded: whether its GPUs are there and have room.

    Without a GPU there is nothing to check, unless the pod was given one.

    Raises:
        UserError: the pod was given GPUs that torch does not see, or too little memory is free.
    """
    import torch

    visible = require_visible()
    if not visible:
        return
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    shards = int(os.environ.get("WORLD_SIZE", "1")) if sharded else 1
    device = int(os.environ.get("LOCAL_RANK", "0")) % visible
    free, total = torch.cuda.mem_get_info(device)
    need = stage_memory(source, model, section, shards=shards)
    if need.total > free:
        stage = "rest-rl" if isinstance(section, RlConfig) else "sft-warmup"
        raise UserError(
            f"{stage} needs {need}; {torch.cuda.get_device_name(device)} has {free / GIB:.1f} of {total / GIB:.1f} GiB "
            f"free; {_remedy(stage)}"
        )


def _need(asked: Gpus, model: ModelConfig, sft: SftConfig, rl: RlConfig) -> Memory | None:
    """A lower bound: on several GPUs the trained model may be sharded over all of them."""
    trainings: dict[str, SftConfig | RlConfig] = {"sft-warmup": sft, "rest-rl": rl}
    section = trainings.get(asked.stage)
    if section is None or not section.enabled:
        return None
    try:
        return stage_memory(model.source, model, section, shards=asked.count * asked.nodes)
    except Unreachable:  # reported by the check of the model
        return None


def _remedy(stage: str) -> str:
    section = "rl" if stage == "rest-rl" else "sft"
    return f"take a larger GPU, more of them with FSDP2 (docs/training.md), or set {section}.lora={{r: 16}}"
