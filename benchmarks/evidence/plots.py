"""The pictures of docs/evidence.md."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rest_core.ablation.plot import comparison_figure
from rest_core.ablation.settings import AblationConfig

from .gradients import is_unclear
from .tables import BASELINE, COMPARED, CONFIDENCE, LAST, PRIMARY, Rows, compared, smoothed

COLOURS = {BASELINE: "#f58518", "paper": "#4c78a8"}
SEEDS = 5  # of a scheme, so that it is shown among the trials: as many as each control has
LABELS = {BASELINE: "uniform (GRPO)", "paper": "paper (ResT)"}


def trials(rows: Rows) -> Figure | None:
    """Each trial's primary figure, and the differences from the baseline; no scheme that is not whole yet."""
    seeds = Counter(row["scheme"] for row in rows if row["part"] in COMPARED)
    found = compared([row for row in rows if seeds[row["scheme"]] >= SEEDS], PRIMARY)
    if found is None:
        return None
    figure = comparison_figure([found], AblationConfig(baseline=BASELINE, metric=PRIMARY, confidence=CONFIDENCE))
    figure.axes[0].set_title("held-out call accuracy after the last step", fontsize=9, loc="left")
    return figure


def curves(rows: Rows) -> Figure | None:
    """Reward, well-formed responses, length and entropies over the steps: means over seeds, and twice their error."""
    chosen = [row for row in rows if row["part"] == "comparison"]
    if not chosen:
        return None
    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3)
    for scheme in COLOURS:
        mine = [row for row in chosen if row["scheme"] == scheme]
        if not mine:
            continue
        _band(panels[0, 0], [smoothed(row["curves"]["reward/total"]) for row in mine], scheme)
        _band(panels[0, 1], [100 * smoothed(row["curves"]["reward/well_formed"]) for row in mine], scheme)
        _band(panels[0, 2], [smoothed(row["curves"]["response/tokens"]) for row in mine], scheme)
        for panel, region in zip(panels[1], ("name", "arguments", "think"), strict=True):
            name = f"entropy/{region}"
            _band(panel, [smoothed(row["curves"][name]) for row in mine if name in row["curves"]], scheme)
            panel.set_title(f"entropy of {region} tokens, nats", fontsize=9, loc="left")
    titles = (f"reward (mean of {LAST} steps)", "well-formed responses, percent", "tokens a response")
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=9, loc="left")
    for panel in panels.flat:
        panel.set_xlabel("step", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(fontsize=8, frameon=False)
    return figure


def _band(axes: Axes, values: Sequence[np.ndarray], scheme: str) -> None:
    if not values:
        return
    table = np.array(values)
    at = range(LAST, LAST + table.shape[1])
    mean = table.mean(0)
    axes.plot(at, mean, color=COLOURS[scheme], label=f"{LABELS[scheme]}, {len(values)} seeds")
    if len(values) > 1:
        error = 2 * table.std(0, ddof=1) / np.sqrt(len(values))
        axes.fill_between(at, mean - error, mean + error, color=COLOURS[scheme], alpha=0.2, linewidth=0)


def gradients(measured: Mapping[str, Any]) -> Figure | None:
    """Each scheme's ratios to uniform's variance and signal-to-noise ratio, by policy; unclear ones are left out."""
    measured = {policy: one for policy, one in measured.items() if "plain" in one}
    if not measured:
        return None
    names = [name for name in next(iter(measured.values()))["plain"]["schemes"] if name != BASELINE]
    figure = Figure(figsize=(11, 1.3 + 0.42 * len(names)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    shown = (
        ("plain", "variance/uniform", "variance, times uniform's"),
        ("plain", "snr/uniform", "signal-to-noise ratio, times uniform's"),
        ("adamw", "snr/uniform", "the same in AdamW's scale"),
    )
    for panel, (scale, ratio, title) in zip(panels, shown, strict=True):
        for offset, (policy, one) in enumerate(measured.items()):
            _ratios(panel, one.get(scale, {}).get("schemes", {}), names, ratio, policy, offset)
        panel.axvline(1, color="#777777", linewidth=1, linestyle="--")
        panel.set_title(title, fontsize=9, loc="left")
        panel.set_yticks(range(len(names)), names, fontsize=8)
        panel.set_ylim(len(names) - 0.3, -0.7)
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_xscale("log")
    panels[0].legend(fontsize=8, frameon=False)
    return figure


def _ratios(
    panel: Axes, schemes: Mapping[str, Any], names: Sequence[str], ratio: str, policy: str, offset: int
) -> None:
    colour = ("#4c78a8", "#f58518", "#54a24b")[offset]
    for row, name in enumerate(names):
        if name not in schemes or (ratio != "variance/uniform" and is_unclear(schemes[name])):
            continue
        value, low, high = schemes[name][ratio]
        place = row + 0.25 * offset
        panel.hlines(place, low, high, color=colour, linewidth=2, alpha=0.6)
        panel.plot([value], [place], "D", color=colour, markersize=5, label=policy if row == 0 else None)
