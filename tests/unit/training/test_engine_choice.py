"""The engine that a configuration asks for, and engines that give no entropies."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

from rest_core.config import ModelConfig, RlConfig, TransformersEngineConfig, VllmEngineConfig, VllmServerConfig, load
from rest_core.errors import UserError
from rest_core.response import parse
from rest_core.rollout.create import create_engine
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task

# Regions of several kinds, so that the weights of a step depend on the entropies.
TASKS = [Task(f"task/{n}", [10 + n, 256, 258], parse("words")) for n in range(4)]


def test_each_engine_has_its_own_settings() -> None:
    assert isinstance(RlConfig().engine, TransformersEngineConfig)
    server = load("tiny", ("rl.engine={engine: vllm_server, url: 'http://gpu:8000', weights: nccl}",)).rl
    assert server.engine == VllmServerConfig(url="http://gpu:8000", weights="nccl")
    assert RlConfig.model_validate(server.to_parameter()) == server  # as it travels through a pipeline
    assert load("tiny", ("rl.engine.engine=vllm",)).rl.engine == VllmEngineConfig()
    for setting in ("{engine: vllm, url: x}", "{engine: vllm_server, url: gpu}", "{engine: other}"):
        with pytest.raises(UserError, match=r"rl\.engine"):
            load("tiny", (f"rl.engine={setting}",))


def test_the_engine_starts_with_the_policys_weights(tiny_model: Any, tiny_tokenizer: Any) -> None:
    made = create_engine(RlConfig().engine, tiny_model, tiny_tokenizer, dtype=torch.float32, max_tokens=64)
    assert isinstance(made, TransformersEngine)
    if importlib.util.find_spec("vllm") is None:
        needs = r"\.engine=vllm needs vLLM .* in this environment"
        with pytest.raises(UserError, match=r"rl\.engine" + needs):
            create_engine(VllmEngineConfig(), tiny_model, tiny_tokenizer, dtype=torch.float32, max_tokens=64)
        with pytest.raises(UserError, match=r"evaluation\.engine" + needs):
            create_engine(
                VllmEngineConfig(),
                tiny_model,
                tiny_tokenizer,
                dtype=torch.float32,
                max_tokens=64,
                setting="evaluation.engine",
            )


@pytest.mark.usefixtures("fresh_accelerator")
@pytest.mark.parametrize(
    ("scheme", "forwards"), [("paper", 1), ("uniform", 0), ("high_entropy", 2), ("token_entropy", 2)]
)
def test_weights_are_the_same_without_the_engines_entropies(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, forwards: int
) -> None:
    """The trainer computes what the engine does not say: until each region has been seen, or in each of the steps."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def train(blind: bool) -> tuple[dict[int, dict[str, float]], dict[str, Any], int]:
        seen: dict[int, dict[str, float]] = {}
        trainer = RlTrainer(
            AutoModelForCausalLM.from_pretrained(tiny_checkpoint),
            AutoTokenizer.from_pretrained(tiny_checkpoint),
            TASKS,
            RlConfig.model_validate(
                {
                    "steps": 2,
                    "prompts_per_step": 4,
                    "group_size": 4,
                    "max_response_tokens": 24,
                    "learning_rate": 0.003,
                    "reward": "rest",
                    "reward_probe_prompts": 0,
                    "weights": {"scheme": scheme},
                }
            ),
            ModelConfig(dtype="float32"),
            folder=tmp_path / str(blind),
            fingerprint="test",
            observer=Observer(lambda metrics, step: seen.__setitem__(step, metrics), lambda rows, name: None),
        )
        generate, judge = trainer.engine.generate, trainer.algorithm.judge
        entropies, asked = trainer.update.entropies, []

        def with_regions(*arguments: Any) -> Any:
            judged = judge(*arguments)  # a random model's responses are of one region: several are drawn
            return dataclasses.replace(judged, regions=torch.arange(len(judged.regions)) % 4)

        def without(*arguments: Any, **options: Any) -> Any:
            groups = generate(*arguments, **options)
            return [[dataclasses.replace(rollout, entropies=None) for rollout in group] for group in groups]

        def count(rollouts: Any) -> Any:
            asked.append(len(rollouts))
            return entropies(rollouts)

        monkeypatch.setattr(trainer.algorithm, "judge", with_regions)
        monkeypatch.setattr(trainer.update, "entropies", count)
        if blind:
            monkeypatch.setattr(trainer.engine, "generate", without)
        trainer.train()
        return seen, trainer.algorithm.entropy.state(), len(asked)

    sighted, means, none = train(blind=False)
    blind, same_means, once = train(blind=True)
    assert (none, once) == (0, forwards)
    sums, same_sums = ({name: pair[0] for name, pair in m.items()} for m in (means, same_means))
    assert len([total for total in sums.values() if total > 1]) == 4
    assert same_sums == pytest.approx(sums, rel=1e-4)
    for step in (1, 2):
        names = [name for name in sighted[step] if name.startswith(("weight/", "entropy/", "loss", "grad_norm"))]
        assert len([name for name in names if name.startswith("weight/")]) == 4
        for name in names:
            assert blind[step][name] == pytest.approx(sighted[step][name], rel=1e-4, abs=1e-6), (step, name)
