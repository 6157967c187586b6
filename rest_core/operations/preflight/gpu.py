"""GPUs: how much memory a stage needs of each, and whether those that it was given are there and large enough."""

from __future__ import annotations

import os
from pathlib import Path

from rest_core.config import ModelConfig, RlConfig, SftConfig
from rest_core.data.published import Unreachable
from rest_core.errors import UserError
from rest_core.operations import pods
from rest_core.operations.preflight.gpu_memory import GIB, Memory, stage_memory
from rest_core.operations.preflight.surroundings import Asked


def refuse_without(stage: str) -> str:
    """Refuse a stage that this run has switched on, while its pod was compiled without the GPU that it is to have."""
    raise UserError(
        f"{stage} is switched on, but the pipeline was compiled with it off: its pod has no GPU; compile or submit it "
        "with this run's settings"
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
            f"free; {remedy(stage)}"
        )


def least_memory(asked: Asked, model: ModelConfig, sft: SftConfig, rl: RlConfig) -> Memory | None:
    """What a stage needs of each GPU at least, as if all of them shared the trained model; None: that is not known."""
    trainings: dict[str, SftConfig | RlConfig] = {"sft-warmup": sft, "rest-rl": rl}
    section = trainings.get(asked.stage)
    if section is None or not section.enabled:
        return None
    try:
        return stage_memory(model.source, model, section, shards=asked.count * asked.nodes)
    except Unreachable:  # reported by the check of the model
        return None


def remedy(stage: str) -> str:
    """What to do where GPUs are too small for a stage."""
    section = "rl" if stage == "rest-rl" else "sft"
    return f"take a larger GPU, more of them with FSDP2 (docs/training.md), or set {section}.lora={{r: 16}}"
