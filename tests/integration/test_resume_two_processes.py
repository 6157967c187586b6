"""Checkpoints of several processes: whole tensors from shards and back, and a stop that all agree on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

SHARDED = """
import sys
from pathlib import Path
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from accelerate.state import PartialState
from rest_core.training.state import full_state, load_full_state, load_parameters, trained

state = PartialState(cpu=True)
mesh = torch.distributed.init_device_mesh("cpu", (2,))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        # Shapes that two processes do not divide, a layer that never has a gradient, one that is not trained.
        self.used, self.unused, self.frozen = nn.Linear(3, 5), nn.Linear(1, 1), nn.Linear(2, 2)
        self.frozen.requires_grad_(False)

    def forward(self, data):
        return self.used(data)

def make(shard):
    torch.manual_seed(0)
    model = Net()
    if shard:
        fully_shard(model, mesh=mesh)
        assert all(isinstance(p, DTensor) for p in model.parameters())
    return model, torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)

def step(model, optimizer, number):
    data = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))  # the same on both: gradients are too
    model(data).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()

def alike(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

plain, sharded = make(False), make(True)
first = state.is_main_process
whole = full_state(*sharded)
assert whole[1] == {}, "reading the state of a new optimizer must not make one"
for number in (1, 2):
    step(*plain, number)
    step(*sharded, number)
parameters, moments = full_state(*sharded)
expected = full_state(*plain)
if first:
    assert sorted(parameters) == ["unused.bias", "unused.weight", "used.bias", "used.weight"]
    keys = ("step", "exp_avg", "exp_avg_sq")
    assert sorted(moments) == sorted(f"{key}/used.{name}" for key in keys for name in ("bias", "weight"))
    for name in parameters:
        torch.testing.assert_close(parameters[name], expected[0][name], rtol=1e-4, atol=1e-5)
else:
    assert parameters == moments == {}
kept = [{name: tensor.clone() for name, tensor in part.items()} for part in (parameters, moments)]

other = make(True)
step(*other, 99)  # a state of its own, all to be replaced
load_full_state(*other, *kept)
again = full_state(*other)
if first:
    assert alike(again[0], kept[0]) and alike(again[1], kept[1])
for number in (3, 4):
    step(*sharded, number)
    step(*other, number)
ours, theirs = full_state(*sharded), full_state(*other)
assert alike(ours[0], theirs[0]) and alike(ours[1], theirs[1])

replicated = make(False)  # as DDP has it: given by the first process alone
load_full_state(*replicated, *kept)
sums = torch.stack([p.detach().double().sum() for p in replicated[0].parameters()])
both = [torch.zeros_like(sums) for _ in range(2)]
torch.distributed.all_gather(both, sums)
assert torch.equal(*both)
(Path(sys.argv[1]) / f"done-{state.process_index}").write_text("")
torch.distributed.destroy_process_group()
"""

TRAIN = """
import json, os, sys, time
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
from rest_core.config import ModelConfig, RlConfig
from rest_core.errors import Preempted
from rest_core.response import parse
from rest_core.training.tasks import Task
from rest_core.training.rl import Observer, RlTrainer

source, out = sys.argv[1], Path(sys.argv[2])
config = RlConfig(
    steps=4, prompts_per_step=4, mini_batch_prompts=2, group_size=4, max_response_tokens=16, micro_batch_tokens=64,
    learning_rate=0.003, reward="rest", reward_probe_prompts=3, checkpoint_every=10, evaluate_every=2,
)
rank = os.environ["RANK"]
(out / f"pid-{rank}").write_text(str(os.getpid()))
tasks = [Task(f"test/{n}", [10 + n, 20, 30 + n][: 1 + n % 3], parse("words")) for n in range(9)]
wait = out / "wait"

def phase(name, step):
    if (name, step) == ("rollout", 2):
        (out / f"there-{rank}").write_text("")
        while wait.exists():
            time.sleep(0.01)

trainer = RlTrainer(
    AutoModelForCausalLM.from_pretrained(source),
    AutoTokenizer.from_pretrained(source),
    tasks[:6],
    config,
    ModelConfig(dtype="float32"),
    folder=out / "training",
    fingerprint="test",
    observer=Observer(lambda metrics, step: None, lambda rows, name: None, phase),
    validation=tasks[6:],  # an uneven share for two processes
)
try:
    trainer.train()
except Preempted as stop:
    (out / f"stopped-{rank}").write_text(f"{stop.exit_code} {stop}")
    sys.exit(stop.exit_code)
"""


def launch(folder: Path, script: str, *arguments: object) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(script)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, str(folder / "script.py"), *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, told = process.communicate(timeout=240)
    assert process.returncode == code, told[-3000:]
    return told


def test_shards_become_whole_tensors_and_shards_again(tmp_path: Path) -> None:
    finish(launch(tmp_path, SHARDED, tmp_path))
    assert {path.name for path in tmp_path.glob("done-*")} == {"done-0", "done-1"}


def outcome(folder: Path) -> dict[str, Any]:
    timed = ("seconds/", "tokens_per_second/", "memory/")
    newest = max((folder / "training").glob("step-*"))
    entries = [json.loads(line) for line in (newest / "history.jsonl").read_text().splitlines()]
    untimed = [{name: value for name, value in entry.items() if not name.startswith(timed)} for entry in entries]
    newest = folder / "training" / "step-000004"
    tensors = {name: (newest / f"{name}.safetensors").read_bytes() for name in ("model", "optimizer")}
    return {"history": untimed, **tensors}


def test_a_signal_to_one_process_stops_both_at_the_same_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    straight.mkdir()
    stopped.mkdir()
    finish(launch(straight, TRAIN, tiny_checkpoint, straight))
    (stopped / "wait").touch()
    process = launch(stopped, TRAIN, tiny_checkpoint, stopped)
    for rank in (0, 1):
        while not (stopped / f"there-{rank}").exists():
            assert process.poll() is None, finish(process)
            time.sleep(0.05)
    os.kill(int((stopped / "pid-1").read_text()), signal.SIGTERM)  # in step 2, where nobody may leave the other alone
    (stopped / "wait").unlink()
    finish(process, code=1)  # the launcher's own
    for rank in (0, 1):
        assert (stopped / f"stopped-{rank}").read_text().startswith("75 SIGTERM: left after step 2 of 4")
    assert [path.name for path in sorted((stopped / "training").glob("step-*"))] == ["step-000000", "step-000002"]
    assert load_file(stopped / "training" / "step-000002" / "model.safetensors")
    finish(launch(stopped, TRAIN, tiny_checkpoint, stopped))
    assert outcome(stopped) == outcome(straight)


def test_what_the_first_process_refuses_ends_both(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "training").write_text("a file where a folder should be")
    told = finish(launch(tmp_path, TRAIN, tiny_checkpoint, tmp_path), code=1)
    assert f"UserError: {tmp_path / 'training'}: something else has this name" in told
