"""Trainings for docs/evidence.md: which scheme of token weights trains the better policy?

    python benchmarks/scheme_trials.py run [PART] [--seeds 0,1]
    python benchmarks/scheme_trials.py collect      a row a trial into results/evidence/trials.jsonl

    PART: warm-up         the data, and the policy that all trials start from
          learning-rates  of GRPO, tried on seeds of their own
          paper-settings  of ResT's weights, as many tries, at the learning rate of the profile
          comparison      GRPO (uniform) against ResT (paper)
          controls        other schemes
          sft             more supervised steps in place of RL
          start           what the policy of the warm-up can do, and the model as it is
          gain            what GRPO gains on held-out requests, to see whether other data is worth a comparison; only
                          where it is named

Each part calls `rest`, in --folder, below which everything stays; what is done is not done again, and what was stopped
resumes. A trial takes one thread (OMP_NUM_THREADS); on several cores run parts beside each other with other seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from evidence.trials import collect, evaluated, keep
from stepbench.machine import TOP, describe

from rest_core.config import load
from rest_core.errors import UserError

PROFILE = TOP / "benchmarks" / "evidence" / "evidence.yaml"
RESULTS = TOP / "benchmarks" / "results" / "evidence" / "trials.jsonl"
COMPARISON = ("uniform", "paper")
CONTROLS = (
    "paper-no-curriculum={scheme: paper, curriculum: false}",
    # Of the entropy rules the one with the best signal-to-noise ratio (results/evidence/gradients-warm.json).
    "inverse-no-curriculum={scheme: paper, curriculum: false, rule: inverse}",
    "mask_only",
    "name_boost",
    "official",
    "high_entropy",
    "dr-grpo={scheme: uniform, rl: {advantage_std: none, loss: {aggregation: constant_length}}}",
)
LEARNING_RATES = ("2e-5", "4e-5", "8e-5", "1.6e-4")
# As many settings of `paper` as learning rates: (w_max, alpha_format, alpha_arguments and alpha_think).
PAPER_SETTINGS = ((8, 4, 2), (4, 2, 1), (2, 1, 0.5), (16, 8, 4))
# Supervised baselines by their loss weights: the warm-up goes on, with the requests that the other trials have for RL.
SUPERVISED = {"sft": "{}", "tsft": "{name: 2, arguments: 2}", "rsft": "{think: 2}"}
# Held-out accuracy is measured by a training: this one changes no weight.
NO_TRAINING = ("rl.steps=1", "rl.prompts_per_step=1", "rl.learning_rate=1e-15")
# Parts and the seeds that they have.
PLAN: dict[str, Sequence[int]] = {
    "warm-up": (0,),
    "learning-rates": (100, 101),
    "paper-settings": (100, 101),
    "comparison": range(8),
    "controls": range(5),
    "sft": range(5),
    "start": (0,),
    "gain": (100, 101),
}


class Trials:
    """The commands of each part, which leave everything in `folder`."""

    def __init__(self, folder: Path, profile: Path, overrides: Sequence[str]) -> None:
        self.folder, self.profile = folder.absolute(), str(profile.absolute())
        self.data, self.policy = self.folder / "warm-up" / "data", self.folder / "warm-up" / "policy"
        self._settings = ["--profile", self.profile, *_set(*overrides)]

    def run(self, part: str, seeds: Sequence[int]) -> None:
        """Everything of a part that is not there yet."""
        commands = {
            "warm-up": self._warm_up,
            "learning-rates": self._learning_rates,
            "paper-settings": self._paper_settings,
            "comparison": lambda seeds: self._ablation(part, COMPARISON, seeds),
            "controls": lambda seeds: self._ablation(part, CONTROLS, seeds),
            "sft": self._sft,
            "start": self._start,
            "gain": self._gain,
        }
        folder = self.folder / part
        folder.mkdir(parents=True, exist_ok=True)
        # Everything is recorded below the folder, where `collect` looks.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
        for arguments in commands[part](seeds):
            sys.stdout.write(f"rest {' '.join(arguments)}\n")
            sys.stdout.flush()
            command = [sys.executable, "-m", "pipelines.cli", *arguments]
            if code := subprocess.run(command, cwd=folder, env=environment, check=False).returncode:
                raise UserError(f"rest {arguments[0]} ended with {code}; mend what it says above, and start this again")

    def _warm_up(self, _: Sequence[int]) -> Iterator[list[str]]:
        yield from self._stage(self.data, "prepare")
        yield from self._stage(self.policy, "sft", "--dataset", str(self.data))

    def _learning_rates(self, seeds: Sequence[int]) -> Iterator[list[str]]:
        for rate in LEARNING_RATES:
            # Chosen by the reward alone; the trials of `paper-settings` give the pilot's spread of the accuracy.
            changes = ("rl.weights.scheme=uniform", f"rl.learning_rate={rate}", "rl.evaluate_every=null")
            yield from self._tried("learning-rates", f"lr-{rate}", "learning_rate", changes, seeds)

    def _paper_settings(self, seeds: Sequence[int]) -> Iterator[list[str]]:
        for w_max, down, up in PAPER_SETTINGS:
            weights = f"w_max: {w_max}, alpha_format: {down}, alpha_arguments: {up}, alpha_think: {up}"
            changes = (f"rl.weights={{scheme: paper, {weights}}}",)
            yield from self._tried("paper-settings", f"paper-{w_max}-{down}-{up}", "", changes, seeds)

    def _tried(
        self, part: str, name: str, replaced: str, changes: Sequence[str], seeds: Sequence[int]
    ) -> Iterator[list[str]]:
        for seed in seeds:
            overrides = (*changes, f"rl.seed={seed}")
            trial = f"{name}={replaced}" if replaced else name
            yield from self._training(self.folder / part / f"{name}-{seed}", str(self.policy), trial, *overrides)

    def _ablation(self, part: str, schemes: Sequence[str], seeds: Sequence[int]) -> Iterator[list[str]]:
        """An ablation a seed, from the policy of the warm-up, on the same data (prepared anew)."""
        start = _set(f"model.source={self.policy}", "sft.enabled=false", "evaluation.policies=[trained]")
        chosen = [text for scheme in schemes for text in ("--scheme", scheme)]
        for seed in seeds:
            out = self.folder / part / f"seed-{seed}"
            if _succeeded(out):
                continue
            if (out / "run.json").exists():
                yield ["ablate", "--resume", str(out)]
                continue
            compared = [
                "--seeds",
                str(seed),
                "--baseline",
                schemes[0].partition("=")[0],
                "--metric",
                "task/last/call_accuracy",
            ]
            yield ["ablate", *self._settings, *start, *chosen, *compared, "--output", str(out)]

    def _sft(self, seeds: Sequence[int]) -> Iterator[list[str]]:
        for name, weights in SUPERVISED.items():
            for seed in seeds:
                data, out = self.folder / "sft" / f"data-{seed}", self.folder / "sft" / f"{name}-{seed}"
                if not data.exists():  # the split of RL in place of that of the warm-up
                    aside = data.with_suffix(".aside")
                    shutil.rmtree(aside, ignore_errors=True)
                    shutil.copytree(self.data, aside, ignore=shutil.ignore_patterns("manifest.json", "sft"))
                    shutil.copytree(aside / "rl", aside / "sft")
                    aside.rename(data)
                source = _set(f"model.source={self.policy}", f"sft.region_weights={weights}", f"sft.seed={seed}")
                yield from self._stage(out, "sft", "--dataset", str(data), *source)
                yield from self._evaluations(out, str(out), name, seed)

    def _start(self, _: Sequence[int]) -> Iterator[list[str]]:
        for name, policy in (("base", load(self.profile).model.source), ("warm-up", str(self.policy))):
            yield from self._evaluations(self.folder / "start" / f"{name}-0", policy, name, 0)

    def _gain(self, seeds: Sequence[int]) -> Iterator[list[str]]:
        for seed in seeds:
            changes = ("rl.weights.scheme=uniform", "rl.evaluate_at_start=true", f"rl.seed={seed}")
            yield from self._training(self.folder / "gain" / f"uniform-{seed}", str(self.policy), "uniform", *changes)

    def _evaluations(self, out: Path, policy: str, name: str, seed: int) -> Iterator[list[str]]:
        """What `evaluated` reads of a policy, in folders beside `out`."""
        task = out.with_name(f"{out.name}-task")
        yield from self._training(task, policy, name, *NO_TRAINING, f"rl.seed={seed}")
        for benchmark in ("bfcl", "api-bank"):
            yield from self._stage(out.with_name(f"{out.name}-{benchmark}"), f"eval-{benchmark}", "--policy", policy)

    def _training(self, out: Path, policy: str, trial: str, *overrides: str) -> Iterator[list[str]]:
        inputs = ("--dataset", str(self.data), "--policy", policy)
        yield from self._stage(out, "train", *inputs, "--trial", trial, *_set(*overrides))

    def _stage(self, out: Path, command: str, *arguments: str) -> Iterator[list[str]]:
        """A stage's command, unless it has been done; `command.json` beside its folder says with which settings."""
        whole = [command, *self._settings, *arguments, "--out", str(out)]
        made_by = out.with_name(f"{out.name}.command.json")
        if (out / "manifest.json").exists():
            if made_by.exists() and json.loads(made_by.read_text(encoding="utf-8")) != whole:
                raise UserError(f"{out}: made with other settings, see {made_by}; remove it, or give another --folder")
            return
        made_by.write_text(json.dumps(whole), encoding="utf-8")
        yield whole

    def collect(self, results: Path) -> int:
        """Add a row for each trial that has ended to a file; returns how many it has then."""
        cpu = describe("cpu")["cpu"]
        rows = []
        for part in ("learning-rates", "paper-settings", "comparison", "controls", "gain"):
            if (database := self.folder / part / "mlruns" / "mlflow.db").exists():
                rows += collect(part, database, cpu)
        rows += evaluated("sft", self.folder / "sft", SUPERVISED, cpu)
        rows += evaluated("start", self.folder / "start", ("base", "warm-up"), cpu)
        return keep(rows, results)


def _set(*overrides: str) -> list[str]:
    return [text for one in overrides for text in ("--set", one)]


def _succeeded(folder: Path) -> bool:
    summary = folder / "summary.json"
    return summary.exists() and json.loads(summary.read_text(encoding="utf-8"))["status"] == "succeeded"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "collect"))
    parser.add_argument("part", choices=PLAN, nargs="?", help="default: one after the other")
    parser.add_argument("--seeds", help="of the part's trials: 0,1,2; default: all that docs/evidence.md names")
    parser.add_argument(
        "--folder", type=Path, default=TOP / "runs" / "evidence", help="where everything is made, and stays"
    )
    parser.add_argument("--profile", type=Path, default=PROFILE)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS, help="file that collect adds to")
    options = parser.parse_args()
    if options.seeds and options.part is None:
        parser.error("--seeds needs a part")
    trials = Trials(options.folder, options.profile, options.overrides)
    try:
        if options.what == "collect":
            sys.stdout.write(f"{trials.collect(options.results)} trials in {options.results}\n")
        else:
            for part in (options.part,) if options.part else [part for part in PLAN if part != "gain"]:
                trials.run(part, [int(seed) for seed in options.seeds.split(",")] if options.seeds else PLAN[part])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
