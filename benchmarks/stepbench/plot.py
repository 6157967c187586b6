"""The report as one picture: where each side's step goes, by work, and what scaling costs."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from .settings import LABELS
from .summary import PHASES
from .work import TITLES, Work

_COLOURS = {
    "rollout": "#4C78A8",
    "reward": "#B9B9B9",
    "old log-probs": "#EECA3B",
    "update": "#F58518",
    "optimizer": "#54A24B",
    "synchronise": "#72B7B2",
    "other": "#9D755D",
}


def figure(report: dict[str, Any]) -> Figure:
    works, scale = report.get("works", {}), report.get("scaling")
    panels = len(works) + bool(scale)
    made = Figure(figsize=(max(7.5, 4.3 * panels), 5.4), layout="constrained")
    axes = made.subplots(1, max(1, panels), squeeze=False)[0]
    for panel, (name, work) in zip(axes, works.items(), strict=False):
        _bars(panel, name, work)
    if scale:
        _scaling(axes[-1], scale)
    names = [name for name in PHASES if any(_visible(work, name) for work in works.values())]
    handles = [Patch(color=_COLOURS[name], label=name) for name in names]
    if handles:
        made.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    made.suptitle(_subject(report), fontsize="medium")
    return made


def _visible(work: dict[str, Any], phase: str) -> bool:
    """Whether a phase takes at least a hundredth of some arm's step: others are left out of the legend."""
    return any(
        arm["phases"].get(phase, {"median": 0.0})["median"] >= 0.01 * arm["seconds"]["median"]
        for arm in work["arms"].values()
    )


def _bars(axes: Axes, name: str, work: dict[str, Any]) -> None:
    shape = Work(**work["work"])
    arms = work["arms"]
    for place, (arm, figures) in enumerate(arms.items()):
        bottom = 0.0
        for phase in PHASES:
            seconds = figures["phases"].get(phase, {"median": 0.0})["median"]
            axes.bar(place, seconds, bottom=bottom, color=_COLOURS[phase], width=0.62)
            bottom += seconds
        wall = figures["seconds"]
        axes.errorbar(
            place,
            wall["median"],
            yerr=[[wall["median"] - wall["low"]], [wall["high"] - wall["median"]]],
            color="black",
            capsize=4,
            linewidth=1,
        )
        peak = figures["peak_bytes"].get("gpu_allocated", figures["peak_bytes"]["rss"]) / 2**30
        text = f"{wall['median']:.1f} s\n{peak:.1f} GiB"
        if arm in work["ratios"]:
            times = work["ratios"][arm]["seconds"]
            text = f"{times['median']:.1f}× our time\n({times['low']:.1f}–{times['high']:.1f})\n" + text
        axes.annotate(
            text, (place, wall["high"]), xytext=(0, 5), textcoords="offset points", ha="center", fontsize="small"
        )
    highest = max(figures["seconds"]["high"] for figures in arms.values())
    axes.set_ylim(0, highest * 1.28)
    axes.set_xticks(range(len(arms)), [LABELS.get(arm, arm).replace(", ", ",\n") for arm in arms])
    axes.set_ylabel("seconds a step (median; bars: min to max)")
    axes.set_title(
        f"({name}) {TITLES.get(name, name)}\n{shape.prompts} × {shape.prompt_tokens} prompt tokens, "
        f"{shape.responses} × {shape.new_tokens} new",
        fontsize="small",
    )
    axes.spines[["top", "right"]].set_visible(False)


def _scaling(axes: Axes, scale: dict[str, Any]) -> None:
    points = scale["points"]
    responses = [point["responses"] for point in points]
    each = [point["seconds_per_token"] * 1e6 for point in points]
    low = [point["seconds"]["low"] / point["tokens"] * 1e6 for point in points]
    high = [point["seconds"]["high"] / point["tokens"] * 1e6 for point in points]
    axes.fill_between(responses, low, high, alpha=0.25, color="#4C78A8", linewidth=0)
    axes.plot(responses, each, marker="o", color="#4C78A8")
    axes.axhspan(min(each), min(each) * 1.2, color="#54A24B", alpha=0.12, label="within 20 % of the least")
    axes.set_xscale("log", base=2)
    axes.set_xticks(responses, [str(n) for n in responses])
    axes.set_ylim(0, max(*high, min(each) * 1.2) * 1.15)
    axes.set_xlabel("responses a step")
    axes.set_ylabel("µs a token")
    shape = scale["work"]
    axes.set_title(
        f"ours: time a token ({scale['model']})\nprompt {shape['prompt_tokens']}, {shape['new_tokens']} new tokens",
        fontsize="small",
    )
    axes.legend(loc="lower right", fontsize="small", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _subject(report: dict[str, Any]) -> str:
    machine = report["machine"]
    where = machine["gpu"]["name"] if "gpu" in machine else f"{machine['cpu']}, {machine['cores']} cores"
    versions = machine["packages"]
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if name in versions)
    return f"One RL step of {report['model']}\n{where}; {named}"
