"""From samples to figures, their table and their picture."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import psutil
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .work import OURS, Work

PHASES = ("rollout", "reward", "update", "optimizer", "synchronise", "other")


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values), "count": len(values)}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times as much `theirs` is: ratio of the medians, and the range of the ratios of the single rounds."""
    rounds = [b / a for a, b in zip(ours, theirs, strict=True)]
    return spread(rounds) | {"median": median(theirs) / median(ours)}


def summarise(work: Work, found: dict[str, Any], peak: dict[str, float] | None) -> dict[str, Any]:
    """The report of one work from what `run_rounds` returned."""
    arms = {name: _arm(work, side, peak) for name, side in found.items()}
    ratios = {}
    for name in [name for name in arms if name != OURS and OURS in arms]:
        walls = ([step["wall"] for step in found[arm]["steps"]] for arm in (OURS, name))
        ratios[name] = {"seconds": ratio(*walls)}
    return {"work": vars(work), "arms": arms, "ratios": ratios}


def _arm(work: Work, side: dict[str, Any], peak: dict[str, float] | None) -> dict[str, Any]:
    steps, ready, parameters = side["steps"], side["ready"], side["ready"]["parameters"]
    phases = {name: spread([step["phases"][name] for step in steps]) for name in PHASES if name in steps[0]["phases"]}
    rollout, update = phases["rollout"]["median"], phases["update"]["median"]
    generated, computed = (median(step[kind] for step in steps) for kind in ("generated", "body_tokens"))
    figures = {
        "settings": side["settings"],
        "seconds": spread([step["wall"] for step in steps]),
        "others_cpu_share": sum(s["others_cpu"] for s in steps) / sum(s["wall"] for s in steps) / psutil.cpu_count(),
        "phases": phases,
        "peak_bytes": {kind: max(step["memory"][kind] for step in steps) for kind in steps[0]["memory"]},
        "peak_is_exact": ready["rss_exact"],
        "samples": {"warm_up": side["warm_up"], "steps": steps},
    }
    if peak and "kv_bytes" in parameters:
        # Forward and backward are 6 FLOP for each parameter that a token passes through: an input embedding is a
        # lookup, and the head is applied where a token was sampled.
        body, head, cached = (parameters[name] for name in ("body", "head", "kv_bytes"))
        figures["update_share_of_peak"] = 6 * (body * computed + head * generated) / update / peak["flops"]
        # A decode step reads all weights once, two bytes each, and each row's keys and values.
        length = generated / work.responses
        least = length * 2 * (body + head) + generated * (work.prompt_tokens + length / 2) * cached
        figures["rollout_over_floor"] = rollout / (least / peak["bandwidth"])
    return figures


def _peak_gib(figures: dict[str, Any]) -> float:
    return float(figures["peak_bytes"].get("gpu_allocated", figures["peak_bytes"]["rss"])) / 2**30


def table(report: dict[str, Any]) -> str:
    """What a terminal shows."""
    lines = []
    for name, work in report["works"].items():
        shape = Work(**work["work"])
        prompts = f"{shape.prompts} prompts of {shape.prompt_tokens} tokens"
        lines.append(f"\n{name}: {prompts}, G = {shape.group}, {shape.new_tokens} new tokens each")
        lines.append(f"{'':12}   step s (min-max)        rollout   update optimizer  peak GiB  times ours (range)")
        for arm, figures in work["arms"].items():
            middle, low, high, _ = figures["seconds"].values()
            line = f"{arm:12}{middle:9.2f} {f'({low:.2f}-{high:.2f})':17}"
            line += "".join(f"{figures['phases'][name]['median']:9.2f}" for name in ("rollout", "update", "optimizer"))
            line += f"{_peak_gib(figures):10.2f}"
            if arm in work["ratios"]:
                middle, low, high, _ = work["ratios"][arm]["seconds"].values()
                line += f"  {middle:.2f} ({low:.2f}-{high:.2f})"
            if figures["others_cpu_share"] > 0.05:
                line += f"  ! other processes took {figures['others_cpu_share']:.0%} of the cores"
            if "rollout_over_floor" in figures:
                line += f"  update at {figures['update_share_of_peak']:.1%} of peak, "
                line += f"rollout {figures['rollout_over_floor']:.2f} times its floor"
            lines.append(line)
    return "\n".join(lines)


def figure(report: dict[str, Any]) -> Figure:
    """One picture: where each side's step goes, by work."""
    works = report["works"]
    made = Figure(figsize=(max(7.5, 4.3 * len(works)), 5.4), layout="constrained")
    for axes, (name, work) in zip(made.subplots(1, len(works), squeeze=False)[0], works.items(), strict=True):
        _bars(axes, name, work)
    handles = [Patch(color=f"C{n}", label=phase) for n, phase in enumerate(PHASES)]
    made.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    machine, versions = report["machine"], report["machine"]["packages"]
    where = machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['cores']} cores"
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions)
    made.suptitle(f"One RL step of {report['model']}\n{where}; {named}", fontsize="medium")
    return made


def _bars(axes: Axes, name: str, work: dict[str, Any]) -> None:
    shape, arms = Work(**work["work"]), work["arms"]
    for place, (arm, figures) in enumerate(arms.items()):
        bottom = 0.0
        for n, phase in enumerate(PHASES):
            seconds = figures["phases"].get(phase, {"median": 0.0})["median"]
            axes.bar(place, seconds, bottom=bottom, color=f"C{n}", width=0.62)
            bottom += seconds
        middle, low, high, _ = figures["seconds"].values()
        axes.errorbar(place, middle, [[middle - low], [high - middle]], color="black", capsize=4, linewidth=1)
        text = f"{middle:.1f} s\n{_peak_gib(figures):.1f} GiB"
        if arm in work["ratios"]:
            times, least, most, _ = work["ratios"][arm]["seconds"].values()
            text = f"{times:.1f}× our time\n({least:.1f}–{most:.1f})\n{text}"
        axes.annotate(text, (place, high), (0, 5), textcoords="offset points", ha="center", fontsize="small")
    axes.set_ylim(0, 1.28 * max(figures["seconds"]["high"] for figures in arms.values()))
    axes.set_xticks(range(len(arms)), list(arms))
    axes.set_ylabel("seconds a step (median; bars: min to max)")
    size = f"{shape.prompts} × {shape.prompt_tokens} prompt tokens, {shape.responses} × {shape.new_tokens} new"
    axes.set_title(f"({name}) G = {shape.group}\n{size}", fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
