from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rest_core.errors import UserError
from rest_core.training.distributed import create_accelerator

CONFIGS = Path(__file__).parents[3] / "configs" / "accelerate"
pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "rl.gradient_checkpointing"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: false"),
    ],
)
def test_what_the_training_does_not_do_is_refused(
    variable: str, value: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, setting in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", variable: value}.items():
        monkeypatch.setenv(name, setting)  # as `accelerate launch` does
    with pytest.raises(UserError, match=problem):
        create_accelerator(half=False)


def test_the_compute_type_is_the_models_and_not_the_launchers() -> None:
    for path in CONFIGS.iterdir():
        assert yaml.safe_load(path.read_text())["mixed_precision"] == "no"
