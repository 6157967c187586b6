"""One RL step, ours against TRL's GRPOTrainer: same prompts, same number of tokens, taking turns in one run.

    python benchmarks/rl_step.py [--work a,b4,b8] [--arms ours,trl-best,trl-default] [--steps 5] [--scaling]
    python benchmarks/rl_step.py --search --work a          # what is TRL's best setting here?
    python benchmarks/rl_step.py --combine results/x.json results/y.json

What is measured and how to read it: benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from stepbench import machine, plan, settings, summary
from stepbench.arms import ask, run_rounds
from stepbench.plot import figure
from stepbench.work import TRAINING, WORKS, Work

from rest_core.errors import UserError

_RESULTS = Path(__file__).resolve().parent / "results"
_CPU_RESPONSES = 8  # a step of ToolRL's shape on a CPU, so that one of TRL ends in about two minutes
_GPU_RESPONSES = 256  # a step of ToolRL's shape on a GPU
_SCALING_RESPONSES = (64, 128, 256, 512, 1024)
_SCALING_ROUNDS, _SCALING_STEPS = 3, 2  # each size comes up in every round
_PARAMETERS = {
    "embedded:smollm2-135m-instruct": 135e6,
    "random:smollm2-135m": 135e6,
    "random:qwen3-0.6b": 0.6e9,
    "random:qwen3-1.7b": 1.7e9,
}
_BY_RESPONSES = ("b4", "b8")
_BESIDES = ("ceiling", "decode", "scaling")  # what a report may hold besides works
_BEGIN = time.monotonic()


def say(text: str) -> None:
    sys.stderr.write(f"[{time.monotonic() - _BEGIN:6.0f} s] {text}\n")
    sys.stderr.flush()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--within", type=float, default=math.inf, help="seconds a work may take: fewer steps, if need be"
    )
    parser.add_argument("--no-plot", action="store_true", help="write the report alone")
    parser.add_argument("--work", default="a,b4,b8", help=f"which works, of {', '.join(WORKS)}; 'none' for none")
    parser.add_argument("--arms", default="", help=f"which sides, of {', '.join(settings.ARMS)}")
    parser.add_argument("--steps", type=int, default=5, help="measured steps a side")
    parser.add_argument("--warm-up", type=int, default=1, help="steps before them that do not count")
    parser.add_argument("--prompts", type=int, help="prompts a step, of every work")
    parser.add_argument("--prompt-tokens", type=int, help="length of a prompt, of every work")
    parser.add_argument("--new-tokens", type=int, help="length of a response, of every work")
    parser.add_argument("--model", default="embedded:smollm2-135m-instruct", help="checkpoint, embedded: or random:")
    parser.add_argument("--tokenizer", help="folder of the tokenizer, where it is not the model's")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="CPU threads of each side")
    parser.add_argument("--ours", default="{}", metavar="YAML", help="fields of RlConfig for our side")
    parser.add_argument("--trl-best", metavar="YAML", help="fields of GRPOConfig in place of the best ones known")
    parser.add_argument("--search", action="store_true", help="try settings of TRL and report the fastest")
    parser.add_argument("--scaling", action="store_true", help="also time our step from 64 to 1,024 responses")
    parser.add_argument("--scaling-model", help="model for it (default on a CPU: random:small)")
    parser.add_argument("--decode", action="store_true", help="also time one decode step against its memory floor")
    parser.add_argument("--combine", nargs="+", type=Path, metavar="FILE", help="join reports of one machine; no run")
    parser.add_argument("--output", type=Path, default=_RESULTS, help="folder for the report and the plot")
    parser.add_argument("--name", default="", help="appended to the names of the files")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    try:
        run(options)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def run(options: argparse.Namespace) -> None:
    if options.combine:
        joined = combine(options.combine)
        write(joined, options.output, joined["file"], options.name)
        sys.stdout.write(summary.table(joined) + "\n")
        return
    device = machine.device_of(options.device)
    works = chosen_works(options, device.type)
    common = {
        "model": options.model,
        "tokenizer": options.tokenizer,
        "device": device.type,
        "threads": options.threads,
    }
    report: dict[str, Any] = {
        "file": machine.short_name(device),
        "command": command(sys.argv[1:]),
        "model": options.model,
        "threads": options.threads,
        "openmp": {name: os.environ.get(name, "default") for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")},
        "machine": machine.describe(device),
    }
    if options.search:
        report["search"] = search(options, works, common)
        write(report, options.output, report["file"], options.name or "search", prefix="trl")
        return
    arms = {work.name: chosen_arms(options, work, device.type) for work in works}
    announce(options, works, arms, device.type)
    if device.type == "cuda":
        report["ceiling"] = ask(common | {"side": "ceiling"}, "ceiling", say)
    for work in works:
        say(f"work {work.name}: {work.responses} responses, {work.generated} tokens to generate a step")
        specs = {arm: common | _side(arm, work, options, device.type) for arm in arms[work.name]}
        found = run_rounds(specs, work, warm_up=options.warm_up, measured=options.steps, say=say, within=options.within)
        report.setdefault("works", {})[work.name] = summary.summarise(
            work, found, cores=machine.all_cores(), peak_flops=report.get("ceiling", {}).get("flops")
        )
        # What is there outlives a later failure.
        write(report, options.output, report["file"], options.name, plot=not options.no_plot)
    if options.decode:
        report["decode"] = measure_decode(options, common)
    if options.scaling:
        report["scaling"] = measure_scaling(options, common)
    write(report, options.output, report["file"], options.name, plot=not options.no_plot)
    sys.stdout.write(summary.table(report) + "\n")


def chosen_works(options: argparse.Namespace, device: str) -> list[Work]:
    if options.work == "none":
        return []
    works = []
    for name in options.work.split(","):
        if name not in WORKS:
            raise UserError(f"--work: unknown work {name!r} (known: {', '.join(WORKS)})")
        work = WORKS[name]
        if name in _BY_RESPONSES or (device == "cpu" and name == TRAINING):
            responses = _CPU_RESPONSES if device == "cpu" else _GPU_RESPONSES
            work = dataclasses.replace(work, prompts=responses // work.group)
        changes = {
            field: value
            for field in ("prompts", "prompt_tokens", "new_tokens")
            if (value := getattr(options, field)) is not None
        }
        works.append(dataclasses.replace(work, **changes))
    return works


def chosen_arms(options: argparse.Namespace, work: Work, device: str) -> list[str]:
    """All, unless asked otherwise; on a CPU the long works leave TRL's defaults out, which would take half an hour.

    Raises:
        UserError: an unknown side, or TRL's on a work whose responses stop, which is not the same work for both.
    """
    if work.stops and options.arms in ("", settings.OURS):
        return [settings.OURS]
    if work.stops:
        raise UserError(
            f"--arms: work {work.name} is measured with {settings.OURS} alone: its responses stop by chance"
        )
    if not options.arms:
        long = device == "cpu" and work.name != "a"
        return [arm for arm in settings.ARMS if not (long and arm == settings.TRL_DEFAULT)]
    arms = options.arms.split(",")
    if unknown := set(arms) - set(settings.ARMS):
        raise UserError(f"--arms: unknown side {min(unknown)!r} (known: {', '.join(settings.ARMS)})")
    return arms


def _side(arm: str, work: Work, options: argparse.Namespace, device: str) -> dict[str, Any]:
    if arm == settings.OURS:
        return {"side": "ours", "settings": settings.settings_of(arm, device, work.name) | yaml.safe_load(options.ours)}
    if arm == settings.TRL_BEST and options.trl_best:
        return {"side": "trl", "settings": yaml.safe_load(options.trl_best)}
    return {"side": "trl", "settings": settings.settings_of(arm, device, work.name)}


def announce(options: argparse.Namespace, works: list[Work], arms: dict[str, list[str]], device: str) -> None:
    rounds, total = options.warm_up + options.steps, 0.0
    sizes = {"device": device, "parameters": _PARAMETERS.get(options.model, 135e6), "cores": options.threads}
    for work in works:
        each = ", ".join(
            f"{arm} about {plan.step_seconds(arm, work, **sizes):.0f} s"
            for arm in arms[work.name]  # type: ignore[arg-type]
        )
        seconds = plan.run_seconds(arms[work.name], work, rounds, **sizes)  # type: ignore[arg-type]
        total += seconds
        say(f"plan: work {work.name}, {rounds} rounds ({each} a step), about {seconds / 60:.0f} min")
    extra = [name for name in ("decode", "scaling") if getattr(options, name)]
    say(f"plan: about {total / 60:.0f} min in all" + (f", and then {' and '.join(extra)}" if extra else ""))


def search(options: argparse.Namespace, works: list[Work], common: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for work in works:
        tried = settings.candidates(common["device"], work.responses)
        say(f"search: work {work.name}, {len(tried)} settings of TRL, {options.warm_up + options.steps} steps each")
        rows: list[dict[str, Any]] = []
        for candidate in tried:
            say(f"trying {json.dumps(candidate)}")
            try:
                made = run_rounds(
                    {"trl": common | {"side": "trl", "settings": candidate}},
                    work,
                    warm_up=options.warm_up,
                    measured=options.steps,
                    say=say,
                )
            except UserError as error:  # out of memory, or a setting that this machine does not have
                say(f"failed: {error}")
                rows.append({"settings": candidate, "failed": str(error)})
                continue
            figures = summary.summarise(work, made, cores=machine.all_cores())["arms"]["trl"]
            rows.append(
                {"settings": candidate} | {what: figures[what] for what in ("seconds", "cpu_seconds", "peak_bytes")}
            )
        ended = [row for row in rows if "seconds" in row]
        if not ended:
            raise UserError(f"work {work.name}: no setting of TRL ran to its end; the reasons stand above")
        best = min(ended, key=lambda row: float(row["seconds"]["median"]))
        found[work.name] = {"work": work.to_dict(), "tried": rows, "best": best}
        say(f"best for {work.name}: {json.dumps(best['settings'])} at {best['seconds']['median']:.2f} s")
    return found


def measure_decode(options: argparse.Namespace, common: dict[str, Any]) -> dict[str, Any]:
    """At batch 256 in ToolRL's shape on a GPU; a small batch on a CPU, where the figure says little."""
    size = {"prompts": 64, "prompt_tokens": 750, "new_tokens": 390}
    if common["device"] == "cpu":
        size = {"prompts": 2, "prompt_tokens": 163, "new_tokens": 32}
    work = Work("decode", group=4, **size)
    say(f"decode: {options.steps + 1} pairs of rollouts at batch {work.responses}")
    spec = common | {"side": "decode", "work": work.to_dict(), "short": 8, "measured": options.steps}
    return ask(spec, "decode", say)


def measure_scaling(options: argparse.Namespace, common: dict[str, Any]) -> dict[str, Any]:
    """Our step alone; on a CPU a small model and short texts, so that it ends.

    A process for each size, and all sizes again in each round: what slows the machine for a while slows none alone.
    """
    cpu = common["device"] == "cpu"
    model = options.scaling_model or ("random:small" if cpu else options.model)
    shape = {"prompt_tokens": 128, "new_tokens": 16} if cpu else {"prompt_tokens": 750, "new_tokens": 390}
    spec = common | {"model": model, "side": "ours", "settings": yaml.safe_load(options.ours)}
    works = [Work("scaling", prompts=responses // 4, group=4, **shape) for responses in _SCALING_RESPONSES]
    found: dict[int, dict[str, dict[str, Any]]] = {}
    for number in range(_SCALING_ROUNDS):
        for work in works:
            say(f"scaling, round {number + 1} of {_SCALING_ROUNDS}: {work.responses} responses, {work.useful} tokens")
            again = run_rounds({settings.OURS: spec}, work, warm_up=options.warm_up, measured=_SCALING_STEPS, say=say)
            first = found.setdefault(work.responses, again)
            if first is not again:
                first[settings.OURS]["steps"] += again[settings.OURS]["steps"]
    points: list[dict[str, Any]] = []
    for work in works:
        figures = summary.summarise(work, found[work.responses], cores=machine.all_cores())["arms"][settings.OURS]
        points.append(
            {
                "responses": work.responses,
                "tokens": work.useful,
                "seconds": figures["seconds"],
                "phases": {name: phase["median"] for name, phase in figures["phases"].items()},
                "peak_bytes": figures["peak_bytes"],
            }
        )
    return {"model": model, "work": shape, **summary.scaling(points)}


def combine(files: list[Path]) -> dict[str, Any]:
    """Reports of the same machine and model as one.

    A work that is in several of them takes its sides from all, each with the ratios of its own run; a side that is in
    several, ours for one, keeps the figures of the first. `parts` says which command at which commit gave what.
    """
    reports = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    joined = reports[0] | {"parts": [part for report in reports for part in parts_of(report)]}
    works: dict[str, Any] = {}
    checks: dict[str, Any] = {}
    for path, report in zip(files, reports, strict=True):
        for what in ("file", "model"):
            if report[what] != joined[what]:
                raise UserError(f"{path}: {what} is {report[what]!r}, {files[0]} has {joined[what]!r}")
        for name, work in report.get("works", {}).items():
            known = works.setdefault(name, work)
            if known["work"] != work["work"]:
                raise UserError(f"{path}: work {name} has another size than in the files before it")
            known["arms"] = work["arms"] | known["arms"]
            known["ratios"] = work["ratios"] | known["ratios"]
        checks |= report.get("checks", {})
        joined |= {part: report[part] for part in _BESIDES if part in report}
    return joined | {"works": works} | ({"checks": checks} if checks else {})


def parts_of(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a report was made by: of one that was joined already, each of its runs."""
    gave = [*report.get("checks", {}), *report.get("works", {}), *(part for part in _BESIDES if part in report)]
    once = {"command": report["command"], "commit": report["machine"]["commit"], "gave": gave}
    return report.get("parts", [once])


def command(arguments: list[str], script: str = "rl_step.py") -> str:
    """The command line that measures the same again; where the report went is no part of it."""
    kept, rest = [], iter(arguments)
    for word in rest:
        if word in ("--output", "--name"):
            next(rest)
        elif not word.startswith(("--output=", "--name=")):
            kept.append(word)
    return shlex.join(["python", f"benchmarks/{script}", *kept])


def write(
    report: dict[str, Any],
    folder: Path,
    machine_name: str,
    name: str,
    prefix: str = "rl_step",
    *,
    plot: bool = True,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    stem = "-".join(filter(None, [prefix, machine_name, name]))
    (folder / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot and ("works" in report or "scaling" in report):
        figure(report).savefig(folder / f"{stem}.png", dpi=130)
    say(f"written: {folder / stem}.json")


if __name__ == "__main__":
    sys.exit(main())
