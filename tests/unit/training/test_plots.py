from __future__ import annotations

import io

from matplotlib.figure import Figure

from rest_core.training.plots import training_figure

REWARD = "Reward, and task accuracy on held-out prompts"


def drawn(figure: Figure) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Title → label → (steps, values)."""
    return {
        axes.get_title(): {
            str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()
        }
        for axes in figure.axes
    }


def test_every_series_is_drawn_over_the_steps_that_have_it() -> None:
    history = [
        {"step": 1.0, "reward/total": 0.5, "reward/format": 0.1, "reward/correctness": 0.4, "entropy/name": 1.5},
        {"step": 1.0, "task/accuracy": 0.25},
        {"step": 2.0, "reward/total": 0.7, "reward/format": 0.2, "reward/correctness": 0.5, "weight/other": 0.9},
    ]
    figure = training_figure(history)
    panels = drawn(figure)
    assert panels[REWARD]["total"] == ([1.0, 2.0], [0.5, 0.7])
    assert panels[REWARD].keys() == {"total", "format", "correctness", "task accuracy"}
    assert panels[REWARD]["task accuracy"] == ([1.0], [0.25])
    assert panels["Policy entropy by region (nats)"] == {"name": ([1.0], [1.5])}
    assert panels["Mean weight by region"] == {"other": ([2.0], [0.9])}
    assert panels["Response length (tokens)"] == {}
    figure.savefig(io.BytesIO(), format="png")


def test_a_training_without_steps_has_an_empty_picture() -> None:
    figure = training_figure([])
    assert all(not series for series in drawn(figure).values())
    figure.savefig(io.BytesIO(), format="png")
