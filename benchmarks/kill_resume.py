"""Trainings that are killed (SIGKILL) at random moments and started again, against one that was never killed.

    python benchmarks/kill_resume.py [--kills 24] [--seed 0] [--output benchmarks/results/kill_resume-cpu.json]

A random model of two layers is trained in float32 on the CPU: real sampling, rewards, updates, evaluations and
checkpoints; once with one update a rollout and once with several. Each training runs in a process of its own and is
killed up to three times, each time at a random moment: one half of them is drawn over the whole time that a training
takes, the rest over the time that it spends in a phase drawn first, so that short phases have their share. What it
leaves (final weights, history without times and memory, tables of completions, figures) must be the same, bit by bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tqdm
import transformers

from rest_core.manifest import git_commit
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task

MODES: dict[str, dict[str, Any]] = {
    "one update a rollout": {},
    "two updates a rollout": {"mini_batch_prompts": 2},
}
SETTINGS: dict[str, Any] = {
    "steps": 6,
    "prompts_per_step": 4,
    "group_size": 4,
    "max_response_tokens": 24,
    "micro_batch_tokens": 256,
    "learning_rate": 0.02,
    "warmup_steps": 3,
    "reward": "toolrl",
    "reward_probe_prompts": 2,
    "checkpoint_every": 2,
    "keep_checkpoints": 1,
    "table_every": 2,
    "evaluate_every": 1,
    "final": "best",
}
ANSWER = "<response>yes</response>"  # one token of the model's vocabulary: it can be learnt in a few steps
MOMENTS = "phases.jsonl"  # what a training was doing when: one line a phase, (seconds since it began, name, step)
RESULT = "result.json"
_UNTIMED = ("seconds/", "tokens_per_second/", "memory/")
_BEGUN = "begun"


@dataclass
class Killed:
    """One kill: when, and what the training was doing."""

    after_seconds: float
    phase: str
    step: int


@dataclass
class Trial:
    """One training with its kills, and whether it ended as the one that was never killed."""

    mode: str
    kills: list[Killed] = field(default_factory=list)
    starts: int = 1
    differing: list[str] = field(default_factory=list)


def train(out: Path, mode: str) -> None:
    """A whole training in `out`, or what is left of one; for a process of its own."""
    from rest_core.config import ModelConfig, RlConfig
    from rest_core.response import parse

    logging.getLogger("rest_core").setLevel(logging.ERROR)
    transformers.utils.logging.disable_progress_bar()
    tqdm.tqdm.set_lock(threading.RLock())  # its own is the system's, and outlives a killed process
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    moments = (out / MOMENTS).open("a", encoding="utf-8", buffering=1)

    def phase(name: str, step: int) -> None:
        moments.write(json.dumps([time.perf_counter() - started, name, step]) + "\n")

    phase(_BEGUN, 0)
    tokenizer = _tokenizer()
    tasks = [Task(f"task/{n}", [10 + n, 20, 30 + n][: 1 + n % 3], parse(ANSWER)) for n in range(14)]
    trainer = RlTrainer(
        _model(tokenizer),
        tokenizer,
        tasks[:6],
        RlConfig(**SETTINGS, **MODES[mode]),
        ModelConfig(dtype="float32"),
        folder=out / "training",
        fingerprint="kill_resume",
        observer=Observer(lambda metrics, step: None, lambda rows, name: None, phase),
        validation=tasks[6:],
    )
    metrics = trainer.train()
    phase("finish", trainer.config.steps)
    trainer.model.save_pretrained(out / "model")
    timeless = {name: value for name, value in metrics.items() if name != "rl/tokens_per_second"}
    aside = out / f"{RESULT}.tmp"
    aside.write_text(json.dumps(timeless))
    aside.replace(out / RESULT)


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of everything that a training has left, times and memory taken out of the history."""
    found = {"metrics": (out / RESULT).read_bytes(), "weights": (out / "model" / "model.safetensors").read_bytes()}
    newest = max((out / "training").glob("step-*"))
    entries = [json.loads(line) for line in (newest / "history.jsonl").read_text().splitlines()]
    untimed = [{k: v for k, v in entry.items() if not k.startswith(_UNTIMED)} for entry in entries]
    found["history"] = json.dumps(untimed).encode()
    for path in sorted((out / "training").glob("completions/*")):
        found[f"completions/{path.name}"] = path.read_bytes()
    for path in sorted((out / "training").glob("step-*/*.safetensors")):
        found[path.relative_to(out).as_posix()] = path.read_bytes()
    return {name: hashlib.sha256(content).hexdigest() for name, content in found.items()}


class Runner:
    """Starts trainings in processes that have everything imported already."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["rest_core.training.rl", "transformers.models.llama.modeling_llama"])

    def finish(self, out: Path, mode: str) -> None:
        """Run a training to its end."""
        process = self.context.Process(target=train, args=(out, mode))
        process.start()
        process.join()
        if process.exitcode != 0:
            raise RuntimeError(f"the training in {out} ended with {process.exitcode}")

    def kill(self, out: Path, mode: str, *, after: float = 0.0, phase: str | None = None) -> Killed | None:
        """Start a training and kill it `after` seconds, counted from its beginning, or from that of a `phase`.

        Returns None where it ended before that.
        """
        known = len(moments(out))
        process = self.context.Process(target=train, args=(out, mode))
        process.start()
        wanted = phase or _BEGUN
        while process.is_alive() and not any(name == wanted for _, name, _ in moments(out)[known:]):
            time.sleep(0.0005)
        process.join(after)
        if process.exitcode is not None:
            if process.exitcode != 0:
                raise RuntimeError(f"the training in {out} ended with {process.exitcode}")
            return None
        process.kill()  # SIGKILL
        process.join()
        _, name, step = moments(out)[-1]
        return Killed(after, name, step)


def moments(out: Path) -> list[tuple[float, str, int]]:
    """What a training in `out` has been doing, start by start."""
    path = out / MOMENTS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]


def differing(out: Path, expected: dict[str, str]) -> list[str]:
    """Names of what is not as `expected`."""
    got = digests(out)
    return sorted(name for name in got.keys() | expected.keys() if got.get(name) != expected.get(name))


def draw(generator: random.Random, timeline: list[tuple[float, str, int]]) -> float:
    """A moment of a training, seconds from its beginning: of its whole time, or of its time in a phase drawn first."""
    if generator.random() < 0.5:
        return generator.uniform(0, timeline[-1][0])
    wanted = generator.choice(sorted({name for _, name, _ in timeline} - {_BEGUN, "finish"}))
    spans = [(one[0], other[0]) for one, other in pairwise(timeline) if one[1] == wanted]
    return generator.uniform(*generator.choice(spans))


def run(kills: int, seed: int, folder: Path, show: Any) -> list[Trial]:
    """Kill trainings of both modes `kills` times in all, at least half of them in each."""
    generator, runner, trials = random.Random(seed), Runner(), []
    for mode in MODES:
        straight = folder / "straight" / mode.replace(" ", "-")
        runner.finish(straight, mode)
        expected = digests(straight)
        timeline = moments(straight)
        left = (kills + 1) // 2
        while left:
            trial = Trial(mode)
            out = folder / "killed" / f"{mode.replace(' ', '-')}-{len(trials)}"
            for _ in range(min(left, generator.randint(1, 3))):
                killed = runner.kill(out, mode, after=draw(generator, timeline))
                if killed is None:  # what was left of it took less time
                    break
                trial.kills.append(killed)
                trial.starts += 1
                left -= 1
            runner.finish(out, mode)
            trial.differing = differing(out, expected)
            trials.append(trial)
            show(trial)
            if not trial.differing:
                shutil.rmtree(out)
    return trials


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the trainings run; default: a temporary folder")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="kill-resume-"))

    def show(trial: Trial) -> None:
        kills = ", ".join(f"{k.phase} {k.step} ({k.after_seconds:.2f} s)" for k in trial.kills)
        verdict = f"DIFFERS: {', '.join(trial.differing)}" if trial.differing else "identical"
        sys.stdout.write(f"{trial.mode:22} {trial.starts:6} {verdict:10} {kills}\n")
        sys.stdout.flush()

    sys.stdout.write(f"{'mode':22} {'starts':>6} {'result':10} killed in\n")
    trials = run(arguments.kills, arguments.seed, folder, show)
    phases = Counter(killed.phase for trial in trials for killed in trial.kills)
    kills = sum(phases.values())
    bad = [trial for trial in trials if trial.differing]
    sys.stdout.write(f"{kills} kills, {len(trials)} trainings, {len(bad)} differ; killed in: {dict(phases)}\n")
    if arguments.output is not None:
        report = {
            "kills": kills,
            "trainings": len(trials),
            "differing": len(bad),
            "killed_in": dict(phases),
            "settings": SETTINGS,
            "seed": arguments.seed,
            "trials": [{"mode": t.mode, "kills": [vars(k) for k in t.kills], "differing": t.differing} for t in trials],
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
            "git_commit": git_commit(),
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if not bad and arguments.folder is None:
        shutil.rmtree(folder)
    return 1 if bad or kills < arguments.kills else 0


def _tokenizer() -> Any:
    """One token a byte, the tags of the response format, and an end."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tags = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>")
    backend.add_tokens([AddedToken(text, normalized=False) for text in (*tags, ANSWER)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|start|>", eos_token="<|end|>", pad_token="<|pad|>"
    )


def _model(tokenizer: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.15,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # predictions that vary most for what matters here
        model.lm_head.weight[[tokenizer.convert_tokens_to_ids(ANSWER), tokenizer.eos_token_id]] *= 3
    return model


if __name__ == "__main__":
    sys.exit(main())
