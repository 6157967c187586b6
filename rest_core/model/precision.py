"""In which type a policy computes on this machine."""

from __future__ import annotations

import logging
from functools import cache

import torch

from rest_core.config import ModelConfig

log = logging.getLogger(__name__)


def compute_dtype(config: ModelConfig) -> torch.dtype:
    """`model.dtype`, or float32 in place of bfloat16 on a CPU that cannot multiply it.

    Such a CPU (x86 without AVX-512) works bfloat16 out number by number: one matrix product of SmolLM2's size takes
    twelve times as long as in float32.
    """
    if config.dtype == "float32":
        return torch.float32
    return torch.bfloat16 if _has_bfloat16() else torch.float32


@cache
def _has_bfloat16() -> bool:
    if torch.accelerator.is_available() or not torch.backends.mkldnn.is_available():
        return True
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return True
    log.warning(
        "this CPU cannot multiply bfloat16 (no AVX-512): it computes in float32 in place of model.dtype=bfloat16"
    )
    return False
