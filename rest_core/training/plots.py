"""The training's course as one picture: reward, entropy and weight by region, length."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rest_core.algorithm.regions import Region

_PANELS = (
    (
        "Reward, and task accuracy on held-out prompts",
        {
            "reward/total": "total",
            "reward/format": "format",
            "reward/correctness": "correctness",
            "task/accuracy": "task accuracy",
        },
    ),
    ("Policy entropy by region (nats)", {f"entropy/{r.name.lower()}": r.name.lower() for r in Region}),
    ("Mean weight by region", {f"weight/{r.name.lower()}": r.name.lower() for r in Region}),
    ("Response length (tokens)", {"response/tokens": "mean"}),
)


def training_figure(history: Sequence[dict[str, float]]) -> Figure:
    """Four panels over the steps; `history` holds each step's logged metrics with its number under "step"."""
    figure = Figure(figsize=(11, 7), layout="constrained")
    for axes, (title, series) in zip(figure.subplots(2, 2).flat, _PANELS, strict=True):
        _panel(axes, title, series, history)
    return figure


def _panel(axes: Axes, title: str, series: dict[str, str], history: Sequence[dict[str, float]]) -> None:
    for metric, label in series.items():
        points = [(row["step"], row[metric]) for row in history if metric in row]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if len(series) > 1 and axes.has_data():
        axes.legend(fontsize="small")
