"""Where a CPU has no arithmetic for bfloat16, float32 takes its place."""

from __future__ import annotations

import logging

import pytest
import torch

from rest_core.config import ModelConfig
from rest_core.model import precision


@pytest.mark.parametrize(
    ("accelerator", "multiplies", "wanted"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_bfloat16_is_for_what_can_multiply_it(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    accelerator: bool,
    multiplies: bool,
    wanted: object,
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: accelerator)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: multiplies, raising=False)
    precision._has_bfloat16.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert precision.compute_dtype(ModelConfig()) is wanted
            assert precision.compute_dtype(ModelConfig()) is wanted
        assert caplog.text.count("cannot multiply bfloat16") == (wanted is torch.float32)
        assert precision.compute_dtype(ModelConfig(dtype="float32")) is torch.float32
    finally:
        precision._has_bfloat16.cache_clear()
