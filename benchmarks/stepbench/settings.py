"""What the sides are run with."""

from __future__ import annotations

from typing import Any

import torch

from rest_core.config import ModelConfig
from rest_core.model.precision import compute_dtype

from .work import PROFILE, TRAINING

OURS = "ours"
TRL_DEFAULT = "trl-default"
TRL_BEST = "trl-best"
ARMS = (OURS, TRL_BEST, TRL_DEFAULT)
LABELS = {OURS: "ours", TRL_BEST: "TRL, best setting", TRL_DEFAULT: "TRL, defaults"}

# TRL's best: what `--search` found to be the fastest, by device and work. All keep our arithmetic: float32 master
# weights and bf16 autocast, which a CPU that cannot multiply bfloat16 leaves out on both sides.
_NO_CHECKPOINTING = {"gradient_checkpointing": False}
BEST: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "a": _NO_CHECKPOINTING | {"per_device_train_batch_size": 4},
        "b4": _NO_CHECKPOINTING | {"per_device_train_batch_size": 4},
        "b8": _NO_CHECKPOINTING | {"per_device_train_batch_size": 4},
    },
    "cuda": {
        "a": _NO_CHECKPOINTING | {"per_device_train_batch_size": 16},
        "b4": _NO_CHECKPOINTING | {"per_device_train_batch_size": 16},
        "b8": _NO_CHECKPOINTING | {"per_device_train_batch_size": 16},
    },
}

# Ours: small passes; a group of ToolRL's shape is divided, which trades more computing for less memory.
OWN: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {
        "a": {"micro_batch_tokens": 1024},
        "b4": {"micro_batch_tokens": 1536},
        "b8": {"micro_batch_tokens": 1536},
    },
    "cuda": {
        TRAINING: PROFILE.model_dump(include={"micro_batch_tokens", "rollout_batch_tokens"}),
    },
}


def candidates(device: str, responses: int) -> list[dict[str, Any]]:
    """Settings of TRL that a search tries: micro-batch sizes, a static cache, and its defaults to compare with."""
    sizes = (1, 2, 4, 8, 16) if device == "cpu" else (4, 8, 16, 32, 64)
    tried: list[dict[str, Any]] = [{}]
    tried += [
        _NO_CHECKPOINTING | {"per_device_train_batch_size": size}
        for size in sizes
        if size <= responses and responses % size == 0
    ]
    middle = 4 if device == "cpu" else 16
    tried.append(
        _NO_CHECKPOINTING | {"per_device_train_batch_size": min(middle, responses), "cache_implementation": "static"}
    )
    return tried


def settings_of(arm: str, device: str, work: str) -> dict[str, Any]:
    if arm == OURS:
        return dict(OWN[device].get(work, {}))
    same = {"bf16": False} if device == "cpu" and compute_dtype(ModelConfig()) is torch.float32 else {}
    return BEST[device][work] | same if arm == TRL_BEST else same
