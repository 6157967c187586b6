"""From samples to the figures that are reported."""

from __future__ import annotations

import statistics
from typing import Any

from .flops import Parameters, update_flop
from .settings import OURS
from .statistics import ratio, spread
from .work import Work

_BUSY = 0.05  # share of the cores that other processes may take before the table says so
PHASES = ("rollout", "reward", "old log-probs", "update", "optimizer", "synchronise", "other")


def summarise(
    work: Work, found: dict[str, dict[str, Any]], *, cores: int, peak_flops: float | None = None
) -> dict[str, Any]:
    """The report of one work.

    Args:
        found: what `run_rounds` returned.
        cores: of the machine, all of them.
        peak_flops: without it no share of it is given.
    """
    arms = {name: _arm(work, arm, cores, peak_flops) for name, arm in found.items()}
    return {
        "work": work.to_dict(),
        "arms": arms,
        "ratios": {
            name: _ratios(found[OURS]["steps"], found[name]["steps"], arms[OURS], arms[name])
            for name in found
            if name != OURS and OURS in found
        },
    }


def _arm(work: Work, arm: dict[str, Any], cores: int, peak_flops: float | None) -> dict[str, Any]:
    steps = arm["steps"]
    wall = spread([step["wall"] for step in steps])
    phases = {
        name: spread([step["phases"][name] for step in steps]).to_dict()
        for name in PHASES
        if name in steps[0]["phases"]
    }
    rollout, update = phases["rollout"]["median"], phases["update"]["median"]
    trained = update + phases["optimizer"]["median"]
    generated = statistics.median(step["generated"] for step in steps)  # the same in each, unless responses stop
    memory = {kind: max(step["memory"][kind] for step in steps) for kind in steps[0]["memory"]}
    summary: dict[str, Any] = {
        "settings": arm["settings"],
        "seconds": wall.to_dict(),
        "cpu_seconds": spread([step["cpu"] for step in steps]).to_dict(),
        "others_cpu_share": sum(s["others_cpu"] for s in steps) / sum(s["wall"] for s in steps) / cores,
        "phases": phases,
        "tokens_per_second": {
            "generated": generated / rollout,
            "trained": generated / trained,
            "step": generated / wall.median,
        },
        "peak_bytes": memory | {kind: arm["ready"][f"rss_{kind}"] for kind in ("loading", "loaded")},
        "peak_is_exact": arm["ready"]["rss_exact"],
        "parameters": arm["ready"]["parameters"],
        "samples": {"warm_up": arm["warm_up"], "steps": steps},
    }
    if body := statistics.median(step["body_tokens"] for step in steps):
        parameters = Parameters(**arm["ready"]["parameters"])
        head = statistics.median(step["head_tokens"] for step in steps)
        useful_tokens = work.useful - work.generated + generated
        computed, useful = update_flop(parameters, body, head), update_flop(parameters, useful_tokens, generated)
        summary["update"] = {
            "computed_tokens": body,
            "head_tokens": head,
            "useful_tokens": useful_tokens,
            "flops_per_second_computed": computed / update,
            "flops_per_second_useful": useful / update,
        }
        if peak_flops is not None:
            summary["update"] |= {
                "share_of_peak_computed": computed / update / peak_flops,
                "share_of_peak_useful": useful / update / peak_flops,
                "share_of_peak_computed_with_optimizer": computed / trained / peak_flops,
            }
    return summary


def _ratios(
    ours: list[dict[str, Any]], theirs: list[dict[str, Any]], our: dict[str, Any], their: dict[str, Any]
) -> dict[str, Any]:
    """How many times TRL's time is ours (larger is better for us), and the share of its memory that we take."""
    return {
        "seconds": ratio([step["wall"] for step in ours], [step["wall"] for step in theirs]).to_dict(),
        "cpu": ratio([step["cpu"] for step in ours], [step["cpu"] for step in theirs]).to_dict(),
        "rollout": ratio([s["phases"]["rollout"] for s in ours], [s["phases"]["rollout"] for s in theirs]).to_dict(),
        "update": ratio([s["phases"]["update"] for s in ours], [s["phases"]["update"] for s in theirs]).to_dict(),
        "memory_share": {
            kind: our["peak_bytes"][kind] / their["peak_bytes"][kind]
            for kind in ("rss", "gpu_allocated", "gpu_reserved")
            if kind in our["peak_bytes"]
        },
    }


def scaling(points: list[dict[str, Any]]) -> dict[str, Any]:
    """Time per token by responses a step; `points` hold `responses`, `tokens` and `seconds` (a spread)."""
    each = [point["seconds"]["median"] / point["tokens"] for point in points]
    return {
        "points": [point | {"seconds_per_token": value} for point, value in zip(points, each, strict=True)],
        "largest_over_smallest": max(each) / min(each),
        "last_over_first": each[-1] / each[0],
    }


def table(report: dict[str, Any]) -> str:
    """What a terminal shows."""
    lines = []
    for name, work in report.get("works", {}).items():
        shape = Work(**work["work"])
        lines += [
            "",
            f"{name}: {shape.prompts} prompts of {shape.prompt_tokens} tokens, G = {shape.group}, "
            f"{shape.new_tokens} new tokens each",
            f"{'':<12} {'step s (min-max)':>24} {'rollout':>8} {'update':>8} {'optim.':>7} {'gen t/s':>8} "
            f"{'train t/s':>9} {'peak GiB':>9}  TRL/ours (range)  memory ours/TRL",
        ]
        for arm, figures in work["arms"].items():
            seconds, phases, speed = figures["seconds"], figures["phases"], figures["tokens_per_second"]
            peak = figures["peak_bytes"].get("gpu_allocated", figures["peak_bytes"]["rss"]) / 2**30
            line = (
                f"{arm:<12} {seconds['median']:9.2f} ({seconds['low']:.2f}-{seconds['high']:.2f})".ljust(37)
                + f" {phases['rollout']['median']:8.2f} {phases['update']['median']:8.2f} "
                f"{phases['optimizer']['median']:7.2f} {speed['generated']:8.0f} {speed['trained']:9.0f} {peak:9.2f}"
            )
            if arm in work["ratios"]:
                times, share = work["ratios"][arm]["seconds"], work["ratios"][arm]["memory_share"]
                line += f"  {times['median']:.2f} ({times['low']:.2f}-{times['high']:.2f})".ljust(20)
                line += f" {share.get('gpu_allocated', share['rss']):.2f}"
            if figures["others_cpu_share"] > _BUSY:
                line += f"  ! other processes took {figures['others_cpu_share']:.0%} of the cores"
            lines.append(line)
        for arm, figures in work["arms"].items():
            if "share_of_peak_computed" in figures.get("update", {}):
                update = figures["update"]
                lines.append(
                    f"{arm:<12} update: {update['share_of_peak_computed']:.1%} of peak a computed token "
                    f"({update['computed_tokens']} tokens), {update['share_of_peak_useful']:.1%} a useful token "
                    f"({update['useful_tokens']})"
                )
    for name, found in report.get("checks", {}).items():
        lines += ["", f"{name}: {'passed' if found['passed'] else 'FAILED'}  {found.get('error', '')}".rstrip()]
        lines += [
            f"  {'ok  ' if check['passed'] else 'FAIL'} {check['value']:9.2e} of {check['limit']:7.1e}  {check['name']}"
            for check in found.get("checks", [])
        ]
    if decode := report.get("decode"):
        lines += [
            "",
            f"decode at batch {decode['batch']}: {decode['seconds']['median'] * 1e3:.2f} ms a step "
            f"({decode['seconds']['low'] * 1e3:.2f}-{decode['seconds']['high'] * 1e3:.2f}), floor "
            f"{decode['floor_seconds'] * 1e3:.2f} ms: {decode['over_floor']:.2f} times",
        ]
    if scale := report.get("scaling"):
        lines += ["", f"{'responses':>9} {'tokens':>8} {'step s':>9} {'µs a token':>11}"]
        lines += [
            f"{p['responses']:>9} {p['tokens']:>8} {p['seconds']['median']:9.2f} {p['seconds_per_token'] * 1e6:11.1f}"
            for p in scale["points"]
        ]
        lines.append(
            f"time a token: largest over smallest {scale['largest_over_smallest']:.2f}, "
            f"last over first {scale['last_over_first']:.2f}"
        )
    return "\n".join(lines)
