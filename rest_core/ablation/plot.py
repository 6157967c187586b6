"""The plot of an ablation: a row of two panels a figure, schemes from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from rest_core.ablation.compare import Comparison, Difference, Summary
from rest_core.ablation.settings import AblationConfig

_BLUE, _ORANGE, _GREY = "#4c78a8", "#f58518", "#777777"
_MARGIN = 0.15  # of the range of the trials, on each side


def comparison_figure(comparisons: Sequence[Comparison], settings: AblationConfig) -> Figure:
    """Left, each trial and each scheme's mean with its interval; right, differences from the baseline.

    The axes show the trials. An interval that is wider runs out of the panel: with few seeds it would leave them
    no room.
    """
    rows = max(1, len(comparisons))
    schemes = max((len(one.schemes) for one in comparisons), default=1)
    figure = Figure(figsize=(10, 0.9 + rows * (0.9 + 0.35 * schemes)), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False)
    for (left, right), comparison in zip(panels, comparisons, strict=False):
        names = comparison.ordered(settings.baseline)
        percent = 100.0 if comparison.is_share else 1.0
        unit = "percent" if comparison.is_share else ""
        _panel(left, names, comparison.schemes, percent, settings.baseline)
        decides = "  (decides)" if comparison.metric == settings.metric else ""
        left.set_title(f"{comparison.metric}{decides}", fontsize=9, loc="left")
        left.set_xlabel(unit, fontsize=8)
        others = [name for name in names if name in comparison.differences]
        _panel(right, others, comparison.differences, percent, settings.baseline)
        low, high = right.get_xlim()
        right.set_xlim(min(low, -0.05 * (high - low)), max(high, 0.05 * (high - low)))  # no difference is always seen
        right.axvline(0, color=_GREY, linewidth=1, linestyle="--")
        right.set_title(f"minus {settings.baseline}, seed by seed", fontsize=9, loc="left")
        right.set_xlabel("points" if comparison.is_share else "", fontsize=8)
        if not others:
            right.set_axis_off()
    if not comparisons:
        for panel in panels[0]:
            panel.set_axis_off()
    figure.suptitle(
        f"points: trials; diamonds: means with {settings.confidence:.0%} intervals over seeds (cut at the edge)",
        fontsize=8,
        color=_GREY,
    )
    return figure


def _panel(
    axes: Any,
    names: Sequence[str],
    found: Mapping[str, Summary] | Mapping[str, Difference],
    scale: float,
    baseline: str,
) -> None:
    for row, name in enumerate(names):
        one = found[name]
        values = [scale * value for value in one.values.values()]
        colour = _ORANGE if name == baseline else _BLUE
        if one.interval is not None:
            axes.hlines(row, scale * one.interval.low, scale * one.interval.high, color=colour, linewidth=2, alpha=0.6)
        axes.plot(values, [row] * len(values), "o", color=colour, markersize=4, alpha=0.7, markeredgewidth=0)
        axes.plot([scale * one.mean], [row], "D", color=colour, markersize=6)
    shown = [scale * value for name in names for value in found[name].values.values()]
    if shown:
        room = _MARGIN * (max(shown) - min(shown)) or 0.01 * scale
        axes.set_xlim(min(shown) - room, max(shown) + room)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(max(1, len(names)) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
