"""The plot of an evaluation's figures."""

from __future__ import annotations

from matplotlib.figure import Figure

from rest_core.evaluation.benchmark import Figures


def accuracy_figure(title: str, figures: Figures, subset: str | None) -> Figure:
    """A bar a figure with its 95 % interval: headline, averages, categories."""
    shown = figures.all
    labels = [f"{name}  (n={figure.total})" for name, figure in shown.items()]
    values = [100 * figure.value for figure in shown.values()]
    lows = [100 * figure.interval.low for figure in shown.values()]
    highs = [100 * figure.interval.high for figure in shown.values()]
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(labels)), layout="constrained")
    axes = figure.subplots()
    first, averages = figures.first, figures.averages
    colours = ["#54a24b" if name in first else "#f58518" if name in averages else "#4c78a8" for name in shown]
    axes.barh(range(len(labels)), values, color=colours, height=0.7)
    reach = [
        [max(0.0, value - low) for value, low in zip(values, lows, strict=True)],
        [max(0.0, high - value) for value, high in zip(values, highs, strict=True)],
    ]
    axes.errorbar(values, range(len(labels)), xerr=reach, fmt="none", ecolor="#333333", elinewidth=1, capsize=3)
    for position, (value, end) in enumerate(zip(values, highs, strict=True)):
        axes.text(max(value, end) + 1.5, position, f"{value:.1f}%", va="center", fontsize=8)
    axes.set_yticks(range(len(labels)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 110)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy in percent; lines are 95 % intervals; green: headline, orange: averages")
    part = "" if subset is None else f"\nSUBSET: {subset}"
    figure.suptitle(f"{title}{part}", fontsize=9, parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
