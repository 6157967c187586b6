"""`accelerate launch` with the committed configuration files: DDP and FSDP2 on two processes, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM

from rest_core import manifest
from rest_core.config import TrackingConfig
from rest_core.data import store
from rest_core.records import Message, Sample

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]

TRAINING = """
import json, shutil, sys
from pathlib import Path
import torch
from accelerate.state import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer
from rest_core import stages
from rest_core.config import FrequencyWeights, LossConfig, ModelConfig, RewardFunction, RlConfig, TrackingConfig
from rest_core.records import Sample
from rest_core.response import parse
from rest_core.model.parameters import whole
from rest_core.training.tasks import Task
from rest_core.training.rl import Observer, RlTrainer

# Four prompts on two processes, and three, of which an update takes one: then one process has none.
CASES = {
    # Adam makes a whole step of next to no gradient: at ten times this rate, rounding grew to two steps in six updates.
    "full": {
        "mini_batch_prompts": 2, "learning_rate": 0.0003, "reward_functions": [RewardFunction(function="picky:picky")]
    },
    "lora": {"lora": {"r": 4}, "prompts_per_step": 3, "mini_batch_prompts": 1, "learning_rate": 0.01},
    "plain": {"loss": LossConfig(), "gradient_checkpointing": True},
    "dapo": {
        "loss": LossConfig(surrogate="gspo", clip_low=0.02, clip_high=0.02, aggregation="constant_length"),
        "advantage_std": "batch", "resample_rounds": 2, "overlong": {"buffer": 8},
        "prompts_per_step": 3, "mini_batch_prompts": 1,
    },
}

def train(source, out, case):
    config = RlConfig(**{
        "steps": 3, "prompts_per_step": 4, "group_size": 4, "max_response_tokens": 16, "micro_batch_tokens": 64,
        "learning_rate": 0.003, "reward": "rest", "reward_probe_prompts": 1, "checkpoint_every": 1,
        "weights": FrequencyWeights(),  # looks at the rollout of all processes
        "loss": LossConfig(kl_coefficient=0.1, entropy_coefficient=0.1), **CASES[case],
    })
    seen = {}
    trainer = RlTrainer(
        AutoModelForCausalLM.from_pretrained(source), AutoTokenizer.from_pretrained(source),
        [
            Task(name, [10 + n, 20, 30 + n][: 1 + n % 3], parse("words"), Sample(name, "test", (), (), "words"))
            for n, name in enumerate(f"test/{n}" for n in range(6))
        ],
        config, ModelConfig(dtype="float32"), folder=out / case, fingerprint="test",
        observer=Observer(lambda metrics, step: seen.__setitem__(step, metrics), lambda rows, name: None),
    )
    result = trainer.train()
    weights = {name: whole(p).clone() for name, p in trainer.model.named_parameters()}
    shares = [p.to_local().numel() / p.numel() for p in trainer.model.parameters() if hasattr(p, "to_local")]
    return {"result": result, "metrics": seen, "weights": weights, "shares": shares,
            "kind": f"{type(trainer.update.policy).__name__} {trainer.accelerator.num_processes}"}

def main(source, out):
    results = {case: train(source, out, case) for case in CASES}
    state = PartialState()
    if state.is_main_process:
        shutil.rmtree(out / "lora" / "step-000003")  # as if it had been stopped before
    state.wait_for_everyone()
    results["resumed"] = train(source, out, "lora")
    stages.rest_rl(
        model=ModelConfig(dtype="float32"),
        rl=RlConfig(steps=1, prompts_per_step=2, group_size=4, max_response_tokens=16, lora={"r": 4}, reward="rest",
                    learning_rate=0.01, reward_probe_prompts=0),
        tracking=TrackingConfig(uri=f"sqlite:///{out}/mlflow.db"), pipeline_run="run",
        dataset=out.parent / "dataset", policy=source, out=out / "stage",
    )
    if state.is_main_process:
        torch.save(results, out / "result.pt")

if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
"""

REWARD = """
import os

def picky(completion_ids, id, log_metric, **kwargs):
    if id[0] == "test/1":
        raise RuntimeError("away")  # its group is dropped: on one process only
    log_metric("rows", len(id))
    return [ids[0] % 5 for ids in completion_ids]

def broken_on_one(completion_ids, **kwargs):
    return [float("nan") if os.environ.get("RANK") == "1" else 1.0 for _ in completion_ids]
"""
# "computed" and "divided": how groups fall into passes depends on the split, what they add up to does not.
TIMED = ("seconds/", "tokens_per_second/", "memory/", "tokens/computed", "update/divided_groups")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("launch")
    (made / "picky.py").write_text(REWARD)
    (made / "training.py").write_text(TRAINING)
    samples = [Sample(f"test/{n}", "test", (Message("user", f"Say {n}"),), (), "words") for n in range(4)]
    rows = [store.to_row(sample, prompt_tokens=10, reference_tokens=10) for sample in samples]
    store.save({"sft": rows, "sft_validation": [], "rl": rows, "rl_validation": []}, made / "dataset")
    manifest.write(made / "dataset", stage="prepare-data", config={}, inputs={}, counts={})
    return made


def launch(folder: Path, mode: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU."""
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)]),
    }
    config = str(ROOT / "configs" / "accelerate" / f"{mode}.yaml")
    launcher = ["-m", "accelerate.commands.launch", "--config_file", config, "--num_processes", "2"]
    return subprocess.run(
        [sys.executable, *launcher, *command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def one(folder: Path, tiny_checkpoint: Path) -> Any:
    """The same trainings by this process alone."""
    AcceleratorState._reset_state(reset_partial_state=True)
    sys.path.insert(0, str(folder))
    try:
        import training  # type: ignore[import-not-found]

        return {case: training.train(tiny_checkpoint, folder / "one", case) for case in training.CASES}
    finally:
        sys.path.remove(str(folder))
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("mode", ["ddp", "fsdp2"])
def test_the_number_of_processes_changes_nothing(mode: str, folder: Path, tiny_checkpoint: Path, one: Any) -> None:
    out = folder / mode
    out.mkdir()
    done = launch(folder, mode, str(folder / "training.py"), str(tiny_checkpoint), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    two = torch.load(out / "result.pt")
    for case, alone in one.items():
        shared = two[case]
        assert shared["kind"] == {"ddp": "DistributedDataParallel 2", "fsdp2": "FSDPPolicy 2"}[mode]
        assert (len(shared["shares"]) > 0) == (mode == "fsdp2") and all(share < 0.6 for share in shared["shares"])
        for name, weight in alone["weights"].items():
            torch.testing.assert_close(shared["weights"][name], weight, rtol=1e-4, atol=3e-5)
        assert shared["result"]["reward/after"] == pytest.approx(alone["result"]["reward/after"])
        for step, metrics in alone["metrics"].items():
            alike = {name: value for name, value in metrics.items() if not name.startswith(TIMED)}
            assert {name: shared["metrics"][step][name] for name in alike} == pytest.approx(alike, rel=1e-3, abs=1e-5)
    assert one["lora"]["result"]["rl/updates"] == 9 and one["full"]["result"]["rl/updates"] == 6
    assert sum(metrics["reward/dropped_groups"] for metrics in one["full"]["metrics"].values()) > 0
    assert sum(metrics["resample/replaced_groups"] for metrics in one["dapo"]["metrics"].values()) > 0
    for name, weight in two["lora"]["weights"].items():
        torch.testing.assert_close(two["resumed"]["weights"][name], weight, rtol=0, atol=0)
    saved = AutoModelForCausalLM.from_pretrained(out / "stage").state_dict()
    before = AutoModelForCausalLM.from_pretrained(tiny_checkpoint).state_dict()
    assert saved.keys() == before.keys()
    assert any(not torch.equal(saved[name], before[name]) for name in saved)  # the adapters are merged
    assert json.loads((out / "stage" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]


def test_one_process_that_fails_ends_all_with_its_message(
    folder: Path, tiny_checkpoint: Path, tracking: TrackingConfig, tmp_path: Path
) -> None:
    settings = {
        "model.source": tiny_checkpoint,
        "tracking.uri": tracking.uri,
        "rl.reward_functions": '[{function: "picky:broken_on_one"}]',
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    command = ["-m", "pipelines.cli", "train", "--profile", "tiny", "--dataset", str(folder / "dataset")]
    out = tmp_path / "rl"
    done = launch(
        folder, "fsdp2", *command, "--policy", str(tiny_checkpoint), "--out", str(out), *options, "--run-name", "run"
    )
    assert done.returncode != 0
    left = json.loads((out / "error.json").read_text())
    assert left["exit_code"] == 2
    assert left["message"].startswith("process 1: reward function broken_on_one: a reward of nan for sample test/")
    assert done.stderr.count(left["message"]) == 1
    assert "exitcode  : 2" in done.stderr
    client = MlflowClient(str(tracking.uri))
    runs = client.search_runs([client.get_experiment_by_name("rest").experiment_id])  # type: ignore[union-attr]
    stage = [run for run in runs if run.data.tags.get("rest.stage") == "rest-rl"]
    assert [run.info.status for run in stage] == ["FAILED"]
    assert stage[0].data.tags["rest.error"] == left["message"]
