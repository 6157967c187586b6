"""The code of docs/adopting.md, run as it stands there."""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from rest_core.algorithm.regions import Region, token_regions
from rest_core.algorithm.weights import token_weights
from rest_core.config import RlConfig, validate
from rest_core.records import Message, Sample
from rest_core.training.reward_functions import RewardFunctions

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

PAGE = Path(__file__).parents[2] / "docs" / "adopting.md"


def blocks(section: str, language: str) -> list[str]:
    """The code blocks of one section of the page."""
    (text,) = [part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if part.startswith(section)]
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def as_module() -> Iterator[Callable[[str, str], Any]]:
    """as_module(name, source): a module of that name made from source."""
    made: list[str] = []

    def make(name: str, source: str = "") -> Any:
        module = types.ModuleType(name)
        exec(compile(source, f"{PAGE.name}: {name}", "exec"), module.__dict__)
        sys.modules[name] = module
        made.append(name)
        return module

    yield make
    for name in made:
        del sys.modules[name]


def test_rest_in_trl(as_module: Any, tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the optional extra trl is not installed")
    (source,) = blocks("ResT in TRL", "python")
    trainer = as_module("rest_in_trl", source).train(
        str(tiny_checkpoint),
        str(tmp_path),
        max_steps=2,
        max_completion_length=8,
        per_device_train_batch_size=8,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )
    logged = [entry for entry in trainer.state.log_history if "rewards/rest_reward/mean" in entry]
    assert trainer.state.global_step == len(logged) == 2
    assert all(entry["rest/weight/other"] == pytest.approx(1) for entry in logged)  # random text: no other region


def test_trls_reward_function_in_our_trainer(as_module: Any) -> None:
    (source,) = blocks("TRL's reward functions", "python")
    (profile,) = blocks("TRL's reward functions", "yaml")
    as_module("my_rewards", source)
    config = validate(RlConfig, yaml.safe_load(profile)["rl"], where="rl")
    functions = RewardFunctions(config)
    sample = Sample("own/1", "own", (Message("user", "question"),), (), "yes")
    given = functions.score(sample, ["oh yes", "no"], [[1], [2]], step=1)
    assert given.totals == [2.0, 0.0] and given.metrics == [("response/characters", 4.0)]
    assert "None" in str(functions.score(Sample("own/2", "own", (), (), ""), ["a", "b"], [[1], [2]], step=1).failure)


def test_rest_in_verl(
    as_module: Any, tiny_checkpoint: Path, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors of verl's shapes. verl itself is not installed: its two functions are stood in for."""
    registered: dict[str, Any] = {}

    def register_adv_est(name: str) -> Callable[[Any], Any]:
        return lambda function: registered.setdefault(name, function)

    def compute_grpo_outcome_advantage(
        token_level_rewards: Any, response_mask: Any, index: Any, norm_adv_by_std_in_grpo: bool
    ) -> Any:
        scores = token_level_rewards.sum(-1)
        assert norm_adv_by_std_in_grpo
        rows = [scores[torch.from_numpy(index == group)] for group in index]
        centred = torch.stack([(x - g.mean()) / (g.std() + 1e-6) for x, g in zip(scores, rows, strict=True)])
        return centred[:, None] * response_mask, None

    for name in ("verl", "verl.trainer", "verl.trainer.ppo"):
        as_module(name)
    core = as_module("verl.trainer.ppo.core_algos")
    core.register_adv_est, core.compute_grpo_outcome_advantage = register_adv_est, compute_grpo_outcome_advantage
    (source,) = blocks("ResT in verl", "python")
    module = as_module("rest_verl", source)
    monkeypatch.setattr(module, "CHECKPOINT", str(tiny_checkpoint))

    texts = ['<tool_call>\n{"name": "f", "parameters": {"a": 1}}\n</tool_call>', "<think>x</think>", "no", "yes"]
    rows = [tiny_tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])  # int64, as verl's
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    rewards = torch.zeros(4, width)
    for row, reward in enumerate((2.0, -1.0, 0.5, 0.0)):
        rewards[row, len(rows[row]) - 1] = reward
    index = np.array(["a", "a", "b", "b"], dtype=object)
    entropy = torch.rand(4, width, generator=torch.Generator().manual_seed(0)) * mask
    batch = {"responses": ids, "entropy": entropy}

    regions = torch.full(ids.shape, int(Region.OTHER))
    for row, given in enumerate(rows):
        regions[row, : len(given)] = token_regions(given, tiny_tokenizer)
    assert set(regions[mask.bool()].tolist()) == {0, 1, 2, 3, 5}
    means = torch.tensor([float(entropy[mask.bool() & (regions == region)].mean()) for region in Region])
    plain, _ = compute_grpo_outcome_advantage(rewards, mask, index, True)
    for step in (1, 2):
        advantages, returns = registered["rest"](
            token_level_rewards=rewards, response_mask=mask, config={}, index=index, batch=batch
        )
        expected = token_weights(
            regions, mask, scheme="paper", step=step, total_steps=module.STEPS, region_entropy=means
        )
        torch.testing.assert_close(advantages, plain * expected)
        assert returns is advantages and not bool(advantages[mask == 0].any())
