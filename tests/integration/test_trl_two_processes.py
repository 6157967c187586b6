"""The adapter for TRL on two processes: still TRL to the bit, and weights made of the rollouts of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("trl", reason="the optional extra trl is not installed")
pytestmark = pytest.mark.slow

TRAIN = """
import sys
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer
from rest_core.adapters.trl import RestGRPOTrainer
from rest_core.algorithm.weights import token_weights

source, out = sys.argv[1:]

def reward(completion_ids, **kwargs):
    return [sum(ids) / len(ids) / 64 for ids in completion_ids]

def make(kind, **own):
    rows = [{"prompt": [{"role": "user", "content": "p" * n}]} for n in (1, 5, 3, 2)]
    args = GRPOConfig(
        output_dir=out, per_device_train_batch_size=4, num_generations=4, max_completion_length=10, max_steps=2,
        learning_rate=0.01, save_strategy="no", report_to="none", use_cpu=True, bf16=False, disable_tqdm=True,
        gradient_checkpointing=False,
    )
    return kind(
        model=AutoModelForCausalLM.from_pretrained(source), reward_funcs=[reward], args=args,
        train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(source), **own,
    )

def trained(*args, **own):
    trainer = make(*args, **own)
    trainer.train()
    return trainer, [p.detach().clone() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()]

plain, theirs = trained(GRPOTrainer)
_, ours = trained(RestGRPOTrainer, token_weights="uniform")
assert plain.accelerator.num_processes == 2
assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), "not TRL"

class Recorded(RestGRPOTrainer):
    def _token_weights(self, output):
        weights = super()._token_weights(output)
        rows = [(w[m.bool()].tolist(), r[m.bool()].tolist(), e[m.bool()].tolist()) for w, m, r, e in zip(
            weights, output["completion_mask"], output["regions"], self._sampling_entropies(output), strict=True)]
        self.seen = gather_object(rows)
        return weights

trainer, _ = trained(Recorded, token_weights="high_entropy")
width = max(len(w) for w, _, _ in trainer.seen)
def padded(n):
    return torch.tensor([[*row[n], *[0] * (width - len(row[n]))] for row in trainer.seen])
mask = torch.tensor([[1] * len(row[0]) + [0] * (width - len(row[0])) for row in trainer.seen])
expected = token_weights(padded(1).long(), mask, scheme="high_entropy", step=2, total_steps=2, token_entropy=padded(2))
torch.testing.assert_close(padded(0), expected)  # the top fifth of all eight responses, not of each four
assert len(trainer.seen) == 8

trainer, weights = trained(RestGRPOTrainer, token_weights="paper")
trainer._observe_entropies()
means = gather_object([trainer.region_entropy.state()])
assert means[0] == means[1] and min(means[0]["OTHER"]) > 0, means
everyone = gather_object([[float(p.double().sum()) for p in weights]])
assert everyone[0] == everyone[1], "the processes have parted"
print("done")
"""


def test_two_processes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, str(tmp_path / "train.py"), str(tiny_checkpoint), str(tmp_path / "out")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done") == 2
