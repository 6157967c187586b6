"""Trainings that are killed (SIGKILL) at random moments and started again, against one that was never killed.

    python benchmarks/kill_resume.py [--kills 24] [--seed 0] [--output benchmarks/results/kill_resume-cpu.json]

A random model of two layers is trained in float32 on the CPU: real sampling, rewards, updates, evaluations and
checkpoints; once with one update a rollout and once with several. Each training is killed up to three times. Half of
the moments are drawn over its whole time, the rest over its time in a phase drawn first, so that short phases are hit
too. Weights, history without times and memory, completions and metrics must be the same, bit by bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import tqdm
import transformers
import yaml
from stepbench.machine import describe
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from rest_core.config import ModelConfig, RlConfig
from rest_core.response import parse
from rest_core.training.rl import Observer, RlTrainer
from rest_core.training.tasks import Task

MODES: dict[str, dict[str, Any]] = {"one update a rollout": {}, "two updates a rollout": {"mini_batch_prompts": 2}}
SETTINGS: dict[str, Any] = yaml.safe_load("""
{steps: 6, prompts_per_step: 4, group_size: 4, max_response_tokens: 24, micro_batch_tokens: 256, learning_rate: 0.02,
warmup_steps: 3, reward: toolrl, reward_probe_prompts: 2, checkpoint_every: 2, keep_checkpoints: 1, table_every: 2,
evaluate_every: 1, final: best}
""")
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


def train(out: Path, mode: str) -> None:
    """A whole training in `out`, or the rest of one; for a process of its own."""
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
    config, model_config = RlConfig(**SETTINGS, **MODES[mode]), ModelConfig(dtype="float32")
    more: dict[str, Any] = {"folder": out / "training", "fingerprint": "kill_resume", "validation": tasks[6:]}
    more["observer"] = Observer(lambda metrics, step: None, lambda rows, name: None, phase)
    trainer = RlTrainer(_model(tokenizer), tokenizer, tasks[:6], config, model_config, **more)
    metrics = trainer.train()
    phase("finish", trainer.config.steps)
    trainer.model.save_pretrained(out / "model")
    del metrics["rl/tokens_per_second"]
    (out / RESULT).write_text(json.dumps(metrics))


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of everything that a training has left, times and memory taken out of the history."""
    training = out / "training"
    newest = max(training.glob("step-*"))
    entries = [json.loads(line) for line in (newest / "history.jsonl").read_text().splitlines()]
    untimed = [{k: v for k, v in entry.items() if not k.startswith(_UNTIMED)} for entry in entries]
    files = [*sorted(training.glob("completions/*")), *sorted(training.glob("step-*/*.safetensors"))]
    found = {path.relative_to(training).as_posix(): path.read_bytes() for path in files}
    found |= {"history": json.dumps(untimed).encode(), "metrics": (out / RESULT).read_bytes()}
    found["weights"] = (out / "model" / "model.safetensors").read_bytes()
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

    def kill(self, out: Path, mode: str, *, after: float = 0.0, phase: str = _BEGUN) -> Killed | None:
        """Start a training and kill it `after` seconds, counted from the beginning of a `phase`.

        Returns None where it ended before that.
        """
        known = len(moments(out))
        process = self.context.Process(target=train, args=(out, mode))
        process.start()
        while process.is_alive() and not any(name == phase for _, name, _ in moments(out)[known:]):
            time.sleep(0.0005)
        process.join(after)
        if process.exitcode == 0:
            return None
        if process.exitcode is not None:
            raise RuntimeError(f"the training in {out} ended with {process.exitcode}")
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


def run(kills: int, seed: int, directory: Path) -> Iterator[dict[str, Any]]:
    """Kill trainings of both modes `kills` times in all; gives each one's mode, kills and what differs."""
    generator, runner, number = random.Random(seed), Runner(), 0
    for mode in MODES:
        straight = directory / mode.replace(" ", "-")
        runner.finish(straight, mode)
        expected, timeline, left = digests(straight), moments(straight), (kills + 1) // 2
        while left:
            number += 1
            out, landed = directory / f"killed-{number}", []
            for _ in range(min(left, generator.randint(1, 3))):
                killed = runner.kill(out, mode, after=draw(generator, timeline))
                if killed is None:  # the rest of it took less time
                    break
                landed.append(killed)
            left -= len(landed)
            runner.finish(out, mode)
            yield {"mode": mode, "kills": [asdict(one) for one in landed], "differing": differing(out, expected)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    options = parser.parse_args()
    directory, trials = Path(tempfile.mkdtemp(prefix="kill-resume-")), []
    for trial in run(options.kills, options.seed, directory):
        trials.append(trial)
        kills = ", ".join(f"{kill['phase']} {kill['step']} ({kill['after_seconds']:.2f} s)" for kill in trial["kills"])
        verdict = f"DIFFERS: {', '.join(trial['differing'])}" if trial["differing"] else "identical"
        sys.stdout.write(f"{trial['mode']:22} {verdict:10} killed in: {kills}\n")
        sys.stdout.flush()
    killed_in = Counter(kill["phase"] for trial in trials for kill in trial["kills"])
    totals = {"kills": killed_in.total(), "trainings": len(trials)}
    totals["differing"] = sum(bool(trial["differing"]) for trial in trials)
    sys.stdout.write(", ".join(f"{count} {name}" for name, count in totals.items()) + "\n")
    if options.output is not None:
        report = totals | {"killed_in": killed_in, "settings": SETTINGS, "seed": options.seed, "trials": trials}
        options.output.write_text(json.dumps(report | {"machine": describe("cpu")}, indent=2) + "\n", encoding="utf-8")
    if totals["differing"]:
        sys.stdout.write(f"the trainings are in {directory}\n")
        return 1
    shutil.rmtree(directory)
    return 0


def _tokenizer() -> Any:
    """One token a byte, the tags of the response format, and an end."""
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
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    config = AutoConfig.for_model("llama", vocab_size=len(tokenizer), initializer_range=0.15, **sizes, **heads, **ids)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # predictions that vary most for what matters here
        model.lm_head.weight[[tokenizer.convert_tokens_to_ids(ANSWER), tokenizer.eos_token_id]] *= 3
    return model


if __name__ == "__main__":
    sys.exit(main())
