"""GRPO against ResT on a borrowed GPU: pairs of trainings, as many as end in time, each written when it is done.

    python benchmarks/gpu_trials.py --dataset FOLDER --results FILE [--within 500] [--prompts 64] [--steps 12]

The warm-up and the settings are those of docs/evidence.md, with more prompts a step. Needs no MLflow and no network.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from evidence.trials import keep, row
from stepbench.machine import TOP, describe

from rest_core.algorithm.rest import ResT
from rest_core.config import Config, load
from rest_core.data.store import load_split, to_sample
from rest_core.model.loading import load_model, load_tokenizer
from rest_core.model.precision import compute_dtype
from rest_core.styles.create import training_style
from rest_core.training import sft
from rest_core.training.progress import Observer
from rest_core.training.rl import RlTrainer
from rest_core.training.tasks import make_tasks

SCHEMES = ("uniform", "paper")
PROFILE = str(TOP / "benchmarks" / "evidence" / "evidence.yaml")


class Pairs:
    """Trainings from one warm policy."""

    def __init__(self, config: Config, dataset: Path, overrides: Sequence[str]) -> None:
        self.config, self.overrides = config, overrides
        self.tokenizer = load_tokenizer(config.model.source, config.model)
        self.style = training_style(config.model, self.tokenizer)
        samples = {name: [*map(to_sample, load_split(dataset, name))] for name in ("sft", "rl", "rl_validation")}
        self.tasks, self.held_out = (
            make_tasks(self.tokenizer, samples[name], self.style) for name in ("rl", "rl_validation")
        )
        rows = sft.encode(self.tokenizer, samples["sft"], self.style)
        with tempfile.TemporaryDirectory() as folder:
            self.model, _ = sft.train(
                load_model(config.model.source, config.model),
                self.tokenizer,
                rows,
                sft.encode(self.tokenizer, [], self.style),
                config.sft,
                config.model,
                folder=Path(folder),
                on_metrics=lambda values, step: None,
            )
        self.model.to("cpu")

    def train(self, scheme: str, seed: int, profile: str) -> dict[str, Any]:
        """One training: its row."""
        rl = load(profile, (*self.overrides, f"rl.weights={{scheme: {scheme}}}", f"rl.seed={seed}")).rl
        history: dict[str, list[tuple[int, float]]] = defaultdict(list)

        def note(values: dict[str, float], step: int) -> None:
            for name, value in values.items():
                history[name].append((step, value))

        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            figures = RlTrainer(
                copy.deepcopy(self.model),
                self.tokenizer,
                self.tasks,
                rl,
                self.config.model,
                folder=Path(folder),
                fingerprint="a GPU's trial",
                observer=Observer(note, lambda rows, name: None),
                validation=self.held_out,
                algorithm=ResT(rl, self.tokenizer, self.style.format),
            ).train()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return row("gpu", scheme, seed, figures, history, seconds=round(time.monotonic() - begin))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="made by `rest prepare` with the same profile")
    parser.add_argument("--results", type=Path, required=True, help="file of rows, a trial each")
    parser.add_argument("--within", type=float, default=500, help="seconds; no pair begins that would not end in time")
    parser.add_argument("--prompts", type=int, default=64, help="a step")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=100, help="at most")
    parser.add_argument("--profile", default=PROFILE)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    begin = time.monotonic()
    sizes = [f"rl.prompts_per_step={options.prompts}", f"rl.steps={options.steps}", "rl.evaluate_every=1000"]
    overrides = (*sizes, "rl.micro_batch_tokens=65536", "rl.rollout_batch_tokens=400000", *options.overrides)
    config = load(options.profile, overrides)
    pairs = Pairs(config, options.dataset, overrides)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else describe("cpu")["cpu"]
    machine = f"{device}, {str(compute_dtype(config.model)).removeprefix('torch.')}"
    longest, count = (time.monotonic() - begin) / 2, 0  # a pair takes longer than the warm-up
    for seed in range(options.seeds):
        started = time.monotonic()
        if started - begin + longest > options.within:
            break
        for scheme in SCHEMES:
            made = pairs.train(scheme, seed, options.profile)
            count = keep([made | {"machine": machine}], options.results)
            sys.stdout.write(
                f"{scheme}, seed {seed}: {made['figures']['task/last/call_accuracy']:.1%} after {made['seconds']} s\n"
            )
        longest = max(longest, time.monotonic() - started)
    sys.stdout.write(f"{count} trials in {options.results}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
