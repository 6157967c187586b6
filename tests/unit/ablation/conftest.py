"""Evaluations of trials, as the stages leave them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rest_core import manifest
from rest_core.ablation.collect import TRAINING
from rest_core.ablation.settings import Trial
from rest_core.config import PaperWeights, RlConfig, UniformWeights

SCHEMES = {"uniform": UniformWeights(), "paper": PaperWeights(), "strong": PaperWeights(w_max=32)}

Evaluation = Callable[..., Path]


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    """evaluation("paper", 0, {"bfcl/call_accuracy": 0.5}): the folder of an evaluation of that trial."""

    def make(
        name: str,
        seed: int,
        metrics: Mapping[str, float],
        *,
        stage: str = "evaluate-bfcl",
        measured_on: str = "8 items abc",
        rl: Mapping[str, Any] | None = None,
        data: str = "d0",
        reward: float = 1.0,
        scheme: Mapping[str, Any] | None = None,
        policy: str | None = None,
        **counts: Any,
    ) -> Path:
        trial = Trial(name=name, seed=seed, weights=SCHEMES[name], rl=dict(scheme or {}))
        folder = tmp_path / f"{stage}-{name}-{seed}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(dict(metrics)))
        settings = trial.applied_to(RlConfig(**(rl or {}))).model_dump(mode="json")
        training = {
            "config": {"rl": settings, "trial": trial.model_dump(mode="json")},
            "inputs": {"dataset": data, "policy": "p0"},
            "figures": {"reward/after": reward},
        }
        manifest.write(
            folder,
            stage=stage,
            config={"trial": trial.model_dump(mode="json")},
            inputs={"policy": policy or f"{name}-{seed}", TRAINING: training},
            counts=counts or {"measured_on": measured_on},
        )
        return folder

    return make
