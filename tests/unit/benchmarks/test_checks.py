"""The checks of the GPU's path, on a CPU and a tiny model: what is right passes, what is wrong does not."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_checks
import numpy as np
import pytest
import torch
from gpu_checks import Check, random_rollouts, relative, rms
from stepbench.work import Work

from rest_core.errors import UserError
from rest_core.model import attention
from rest_core.rollout.sampling import sample

_WORK = Work("x", prompts=2, prompt_tokens=12, group=3, new_tokens=6)
_TOP = Path(__file__).resolve().parents[3]


def _failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def test_a_check_passes_up_to_its_limit_and_never_on_nan() -> None:
    assert Check("x", 0.5, 0.5).passed
    assert not Check("x", 0.6, 0.5).passed
    assert not Check("x", math.nan, 0.5).passed


def test_errors_as_numbers() -> None:
    found, wanted = torch.tensor([3.0, 6.0]), torch.tensor([3.0, 2.0])
    assert rms(found, wanted) == pytest.approx(math.sqrt(8))
    assert relative(found, wanted) == pytest.approx(4 / math.sqrt(13))


def test_random_rollouts_have_many_lengths() -> None:
    rollouts = random_rollouts(_WORK, 40)
    assert [len(rollout.prompt_ids) for rollout in rollouts] == [12, 12, 12, 6, 6, 6]
    assert [len(rollout.response_ids) for rollout in rollouts] == [1, 3, 6, 1, 3, 6]
    assert random_rollouts(_WORK, 40) == rollouts


def test_attention_over_trees_passes(tiny_model: Any) -> None:
    checks = gpu_checks.check_attention(tiny_model, _WORK)
    assert _failed(checks) == []
    assert len(checks) == 7


def test_attention_that_sees_too_little_fails(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Responses without their prompt; the trial that would refuse such a model at once is switched off."""
    usual = attention.Trees.segments

    def without_prompts(trees: attention.Trees) -> Any:
        for queries, _, own in usual(trees):
            yield queries, slice(own.start, own.start), own

    monkeypatch.setattr("rest_core.model.logprobs.why_not_shared", lambda model: None)
    monkeypatch.setattr(attention.Trees, "segments", without_prompts)
    failed = _failed(gpu_checks.check_attention(tiny_model, _WORK))
    assert any("log-prob" in name for name in failed if name.startswith("float32"))
    assert any("gradient" in name for name in failed if name.startswith("float32"))
    assert any("that of the plain path" in name for name in failed if name.startswith("bfloat16"))


def test_a_model_without_shared_rows_is_an_error(random_model: Callable[..., Any]) -> None:
    windowed = random_model("mistral", sliding_window=4)
    with pytest.raises(UserError, match="shared rows have failed their trial"):
        gpu_checks.check_attention(windowed, _WORK)


def test_decoding_passes(tiny_model: Any) -> None:
    checks = gpu_checks.check_decode(tiny_model, _WORK)
    assert _failed(checks) == []
    assert len(checks) == 2 * 3 + 1


def test_log_probs_of_another_distribution_fail(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def warmer(logits: torch.Tensor, *arguments: Any) -> Any:
        return sample(logits / 1.1, *arguments)

    monkeypatch.setattr("rest_core.rollout.decoding.sample", warmer)
    failed = _failed(gpu_checks.check_decode(tiny_model, _WORK))
    assert any(name.startswith("float32: largest difference of logps") for name in failed)


def test_a_replay_must_give_the_same_ids_and_values() -> None:
    plain = random_rollouts(_WORK, 40)
    for rollout in plain:
        rollout.entropies = [1.0] * len(rollout.response_ids)
    assert [check.passed for check in gpu_checks.compare_replay("x", plain, plain)] == [True, True, True]
    other, shifted = copy.deepcopy(plain), copy.deepcopy(plain)
    other[2].response_ids[-1] += 1
    assert gpu_checks.compare_replay("x", other, plain)[0].value == 1
    shifted[2].logps[-1] += 1e-3
    assert [check.passed for check in gpu_checks.compare_replay("x", shifted, plain)] == [True, False, True]


def test_a_step_that_differs_fails() -> None:
    right = {"loss": 0.1, "grad_norm": 2.0, "gradients": {"a": np.array([1.0, 2.0]), "b": np.ones(3)}}
    assert all(check.passed for check in gpu_checks.compare_update(copy.deepcopy(right), right))
    for change in (
        {"loss": 0.2},
        {"grad_norm": 2.1},
        {"gradients": {"a": np.array([1.0, 2.1]), "b": np.ones(3)}},
    ):
        assert sum(not check.passed for check in gpu_checks.compare_update(right | change, right)) == 1


@pytest.mark.usefixtures("fresh_accelerator")
def test_both_updates_are_of_the_same_rollouts(tiny_checkpoint: Path) -> None:
    first, rollouts = gpu_checks.update(str(tiny_checkpoint), None, _WORK, None)
    second, same = gpu_checks.update(str(tiny_checkpoint), None, _WORK, rollouts)
    assert same is rollouts
    assert first["grad_norm"] == second["grad_norm"] > 0
    assert {"model.norm.weight", "model.layers.1.mlp.down_proj.weight"} <= set(first["gradients"])


def test_what_the_parts_import_needs_no_package_of_the_pipeline() -> None:
    """A GPU's machine has torch and transformers, and the wheels that `gpu.sh pack` brings."""
    absent = ("datasets", "mlflow", "kfp", "kfp_kubernetes", "kfp_server_api", "kubernetes", "kubeflow", "docker")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({absent}))\n"  # as if they were not installed
        "import gpu_checks, rl_step\n"
        "from stepbench import child"
    )
    path = {"PYTHONPATH": f"{_TOP}:{_TOP / 'benchmarks'}", "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
