"""One training by one process and by two: the same responses, the same updates."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.slow

TRAIN = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from rest_core.config import FrequencyWeights, LossConfig, ModelConfig, RewardFunction, RlConfig
from rest_core.records import Sample
from rest_core.response import parse
from rest_core.training.rl import Observer, RlTrainer, Task

source, out, *functions = sys.argv[1:]
config = RlConfig(
    steps=2, prompts_per_step=4, mini_batch_prompts=2, group_size=4, max_response_tokens=16, micro_batch_tokens=64,
    learning_rate=0.003, reward="toolrl", reward_probe_prompts=3, checkpoint_every=1,
    weights=FrequencyWeights(),  # looks at the rollout of all processes
    loss=LossConfig(kl_coefficient=0.1, entropy_coefficient=0.1),
    reward_functions=[RewardFunction(function=name) for name in functions],
)
seen = {}
trainer = RlTrainer(
    AutoModelForCausalLM.from_pretrained(source),
    AutoTokenizer.from_pretrained(source),
    [
        Task(name, [10 + n, 20, 30 + n][: 1 + n % 3], parse("words"), Sample(name, "test", (), (), "words"))
        for n, name in enumerate(f"test/{n}" for n in range(6))
    ],
    config,
    ModelConfig(dtype="float32"),
    folder=__import__("pathlib").Path(out) / "checkpoints",
    fingerprint="test",
    observer=Observer(lambda metrics, step: seen.__setitem__(step, metrics), lambda rows, name: None),
)
result = trainer.train()
if trainer.accelerator.is_main_process:
    processes = trainer.accelerator.num_processes
    weights = {name: p.detach() for name, p in trainer.model.named_parameters()}
    torch.save({"processes": processes, "result": result, "metrics": seen, "weights": weights}, f"{out}/result.pt")
"""
# "computed" and "divided": how groups fall into passes depends on the split, what they add up to does not.
TIMED = ("seconds/", "tokens_per_second/", "memory/", "tokens/computed", "update/divided_groups")


REWARD = """
def picky(completion_ids, id, log_metric, **kwargs):
    if id[0] == "test/1":
        raise RuntimeError("away")
    log_metric("rows", len(id))
    return [ids[0] % 5 for ids in completion_ids]
"""


def train(source: Path, out: Path, processes: int, *functions: str) -> dict[str, Any]:
    out.mkdir()
    (out / "picky.py").write_text(REWARD)
    (out / "train.py").write_text(TRAIN)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command = [
        sys.executable,
        *(launcher if processes > 1 else []),
        str(out / "train.py"),
        str(source),
        str(out),
        *functions,
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(torch.load(out / "result.pt"))


@pytest.mark.parametrize("functions", [(), ("picky:picky",)], ids=["tool reward", "reward function that drops a group"])
def test_the_number_of_processes_changes_nothing(
    tiny_checkpoint: Path, tmp_path: Path, functions: tuple[str, ...]
) -> None:
    one, two = (train(tiny_checkpoint, tmp_path / str(n), n, *functions) for n in (1, 2))
    if functions:
        assert 0 < sum(metrics["reward/dropped_groups"] for metrics in one["metrics"].values()) < 8
    assert (one["processes"], two["processes"]) == (1, 2)
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-4, atol=1e-5)
    assert two["result"]["reward/after"] == one["result"]["reward/after"]
    assert one["result"]["rl/updates"] == 4
    for step, metrics in one["metrics"].items():
        alike = {name: value for name, value in metrics.items() if not name.startswith(TIMED)}
        assert {name: two["metrics"][step][name] for name in alike} == pytest.approx(alike, rel=1e-3, abs=1e-5)
