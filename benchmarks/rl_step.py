"""One RL step, ours against TRL's GRPOTrainer: same prompts, same number of tokens, taking turns in one run.

    python benchmarks/rl_step.py [--work a,b4,b8] [--arms ours,trl-best,trl-default] [--steps 5]
    python benchmarks/rl_step.py --against COMMIT --work a      # ours, and ours at another commit

What is measured and how to read it: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from stepbench.machine import TOP, checkout, describe
from stepbench.report import figure, summarise, table
from stepbench.work import AGAINST, ARMS, OURS, TRL_BEST, Work, settings_of, works_of

from rest_core.errors import UserError

_BEGIN = time.monotonic()


def say(text: str) -> None:
    sys.stderr.write(f"[{time.monotonic() - _BEGIN:6.0f} s] {text}\n")


class Process:
    """A process that loads a side, with the code in `tree`, and sleeps between its steps."""

    def __init__(self, name: str, spec: dict[str, Any], tree: Path, stack: ExitStack) -> None:
        path = os.pathsep.join([str(tree / "benchmarks"), str(tree), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
        # OpenMP waits as it does by default: its workers spin for milliseconds, then leave the cores to the other side.
        environment["OMP_NUM_THREADS"] = str(spec["threads"])
        environment |= {"CUDA_VISIBLE_DEVICES": ""} if spec["device"] == "cpu" else {}
        command = [sys.executable, "-P", "-m", "stepbench.child", json.dumps(spec)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.name = name
        self.process: Any = stack.enter_context(subprocess.Popen(command, env=environment, **pipes))
        self.found = {"settings": spec["settings"], "ready": self.ask(""), "warm_up": [], "steps": []}
        say(f"{name} is loaded")

    def ask(self, command: str) -> dict[str, Any]:
        """Send `command` and wait for the answer; it is an error that the process has ended."""
        with suppress(BrokenPipeError):
            self.process.stdin.write(command)
            self.process.stdin.flush()
        if line := self.process.stdout.readline():
            return json.loads(line)  # type: ignore[no-any-return]
        raise UserError(f"{self.name} ended with code {self.process.wait()}; its error is above")

    def step(self, work: Work, number: int) -> None:
        before = _busy_seconds()
        step = self.ask("step\n")
        step["others_cpu"] = max(0.0, _busy_seconds() - before - step["cpu"])
        if not work.stops and step["generated"] != work.generated:
            raise UserError(f"{self.name} generated {step['generated']} tokens where the work has {work.generated}")
        self.found["steps" if number else "warm_up"].append(step)
        phases = "  ".join(f"{phase} {seconds:.2f}" for phase, seconds in step["phases"].items())
        say(f"{self.name:12}{f'step {number}' if number else 'warm-up':8}{step['wall']:9.2f} s  {phases}")


def _busy_seconds() -> float:
    """Processor seconds that all processes of the machine have used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def run_rounds(specs: dict[str, dict[str, Any]], work: Work, steps: int, within: float, other: Path) -> dict[str, Any]:
    """All sides loaded at once; in each round each does one step, in an order that moves on by one.

    One round is warm-up, then come `steps` that are measured, as many as end `within` these seconds, but at least one.
    Returns each side's settings and answers by its name.

    Raises:
        UserError: a process died, or the sides did not do the same work.
    """
    begin = time.monotonic()
    more = {"rounds": steps + 1, "work": dataclasses.asdict(work), "company": True}  # the last for older commits
    with ExitStack() as stack:
        # Loaded one after the other, so that none loads while another measures.
        sides = deque(Process(name, specs[name] | more, other if name == AGAINST else TOP, stack) for name in specs)
        found = {side.name: side.found for side in sides}
        if len({side["ready"]["prompts"] for name, side in found.items() if name != AGAINST}) > 1:
            raise UserError("the sides have different prompt ids; their tokenizers or chat templates differ")
        for number in range(steps + 1):
            round_begin = time.monotonic()
            for side in sides:
                side.step(work, number)
            sides.rotate(-1)
            if 0 < number < steps and 2 * time.monotonic() - begin - round_begin > within:
                say(f"no time for another round within {within:.0f} s")
                break
    return found


def add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="embedded:smollm2-135m-instruct", help="checkpoint, embedded: or random:")
    add("--tokenizer", help="directory of the tokenizer, where it is not the model's")
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="CPU threads of each side")
    add("--output", type=Path, default=TOP / "benchmarks" / "results", help="directory of the report and the plot")
    add("--name", default="", help="appended to the names of the files")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", default="a,b4,b8", help=f"which works, of {', '.join(works_of('cpu'))}")
    add("--arms", help=f"which sides, of {', '.join(ARMS)} (default: ours,trl-best)")
    add("--against", metavar="COMMIT", help="also ours at another commit (default of --arms: ours)")
    add("--steps", type=int, default=5, help="measured steps a side")
    add("--within", type=float, default=math.inf, help="seconds a work may take: fewer steps, if need be")
    for name in ("prompts", "prompt-tokens", "new-tokens"):
        add(f"--{name}", type=int, help="of every work, in place of its own")
    add("--ours", default="{}", metavar="YAML", help="fields of RlConfig for our side")
    add("--trl-best", default="{}", metavar="YAML", help="fields of GRPOConfig, over those that are known to be best")
    add_common(parser)
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    try:
        with checkout(options.against) if options.against else nullcontext((TOP, None)) as (other, commit):
            report = measure(options, other, commit)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    figure(report).savefig(write(report, options, "rl_step").with_suffix(".png"), dpi=130)
    sys.stdout.write(table(report) + "\n")
    return 0


def measure(options: argparse.Namespace, other: Path, commit: str | None) -> dict[str, Any]:
    """The report of all works; it is written after each, so that it outlives a later failure."""
    common = {name: getattr(options, name) for name in ("model", "tokenizer", "device", "threads")}
    report = start_report(options) | {"against": commit, "works": {}}
    for work in chosen_works(options):
        say(f"work {work.name}: {work.responses} responses, {work.generated} tokens to generate a step")
        specs = {arm: common | side_of(arm, work, options) for arm in chosen_arms(options, work)}
        found = run_rounds(specs, work, options.steps, options.within, other)
        report["works"][work.name] = summarise(work, found, report["machine"].get("peak"))
        write(report, options, "rl_step")
    return report


def names_in(option: str, text: str, known: Collection[str]) -> list[str]:
    if unknown := set(text.split(",")) - set(known):
        raise UserError(f"--{option}: unknown {min(unknown)!r} (known: {', '.join(known)})")
    return text.split(",")


def chosen_works(options: argparse.Namespace) -> list[Work]:
    known = works_of(options.device)
    sizes = {name: getattr(options, name) for name in ("prompts", "prompt_tokens", "new_tokens")}
    changes = {name: size for name, size in sizes.items() if size is not None}
    return [dataclasses.replace(known[name], **changes) for name in names_in("work", options.work, known)]


def chosen_arms(options: argparse.Namespace, work: Work) -> list[str]:
    alone = options.against or work.stops
    names = names_in("arms", options.arms or (OURS if alone else f"{OURS},{TRL_BEST}"), ARMS)
    if work.stops and names != [OURS]:
        raise UserError(f"--arms: work {work.name} is measured with {OURS} alone: its responses stop by chance")
    return names + [AGAINST] * bool(options.against)


def side_of(arm: str, work: Work, options: argparse.Namespace) -> dict[str, Any]:
    given = {OURS: options.ours, AGAINST: options.ours, TRL_BEST: options.trl_best}.get(arm, "{}")
    settings = settings_of(arm, options.device, work.name) | yaml.safe_load(given)
    return {"side": "ours" if arm in (OURS, AGAINST) else "trl", "settings": settings}


def start_report(options: argparse.Namespace) -> dict[str, Any]:
    command = shlex.join(["python", *sys.argv])
    return {"command": command, "model": options.model, "machine": describe(options.device)}


def write(report: dict[str, Any], options: argparse.Namespace, kind: str) -> Path:
    """Write a report as JSON, in a file that names its kind and its device."""
    device = re.sub(r"[^a-z0-9]+", "-", report["machine"].get("gpu", {"name": "cpu"})["name"].lower()).strip("-")
    path = options.output / ("-".join(filter(None, [kind, device, options.name])) + ".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    say(f"written: {path}")
    return path


if __name__ == "__main__":
    sys.exit(main())
