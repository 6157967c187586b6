"""The tables and pictures of docs/evidence.md, and the rows that they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import evidence_report
import numpy as np
import pytest
from evidence import plots, tables
from evidence.trials import keep, read


def row(scheme: str, seed: int, last: float, *, part: str = "comparison", gain: float = 0.1) -> dict[str, Any]:
    steps = 24
    rewards = [gain * step + 0.01 * seed for step in range(steps)]
    accuracy = [[0, 0.2], [12, (0.2 + last) / 2], [24, last]]
    return {
        "part": part,
        "scheme": scheme,
        "seed": seed,
        "settings": {"evaluate_samples": "4"},
        "machine": "one",
        "figures": {"task/last/call_accuracy": last, "bfcl/call_accuracy": last / 2},
        "curves": {
            "reward/total": rewards,
            "reward/well_formed": [0.9] * steps,
            "response/tokens": [60.0] * steps,
            "entropy/name": [None, *([0.1, 0.3] * steps)[: steps - 1]],
            "entropy/arguments": [0.2] * steps,
            "entropy/format": [0.01] * steps,
        },
        "measured": {"task/accuracy": accuracy},
    }


PAIRS = [row("uniform", n, 0.30 + 0.01 * n) for n in range(8)]
PAIRS += [row("paper", n, 0.35 + 0.01 * n + 0.002 * (n % 2), gain=0.2) for n in range(8)]


def test_the_primary_figure_is_compared_by_pairs() -> None:
    lines = tables.comparison(tables.compared(PAIRS, tables.PRIMARY, parts=("comparison",)))
    assert lines[2].startswith("| uniform | 8 | 33.5% |")
    assert "| +5.1 pp | +5.0 pp to +5.2 pp | < 0.001 |" in lines[3]  # seeds differ by far more


def test_figures_follow_from_curves() -> None:
    found = tables.derived(PAIRS[2])
    assert found["last reward/total"] == pytest.approx(0.1 * 21 + 0.02)
    assert found["change entropy/name"] == pytest.approx(0.2)  # a step without such tokens is no change


def test_steps_to_the_baselines_final_reward() -> None:
    found = tables.speed(PAIRS)
    assert found is not None
    # The mean of the 5 steps around step s is 0.1 (s - 1), 2.1 at the last such step, 22; the other's is 0.2 (s - 1).
    assert (found["steps"], found["of"]) == (12, 22)
    assert found["low"] <= found["ratio"] <= found["high"]
    assert found["reached"] and found["not_reached"] == 0
    slower = [one if one["scheme"] == "uniform" else row("paper", one["seed"], 0.3, gain=0.05) for one in PAIRS]
    never = tables.speed(slower)
    assert never is not None and (never["steps"], never["of"]) == (23, 22)
    assert not never["reached"] and never["not_reached"] == 1
    assert tables.speed(PAIRS[:1]) is None


def test_what_a_training_gains_is_its_last_figures_beside_its_first() -> None:
    measured = {"task/call_accuracy": [[0, 0.05], [18, 0.1]], "task/irrelevance_accuracy": [[0, 0.5], [18, 0.25]]}
    one = row("uniform", 100, 0.1, part="gain") | {"measured": measured}
    lines = tables.gains([*PAIRS, one])
    assert lines[2:] == ["| 100 | 5.0% | 10.0% | 50.0% | 25.0% | 1.20 | 3.10 |"]
    assert tables.gains(PAIRS) == ["Not measured yet."]


def test_a_pilot_says_how_wide_the_interval_will_be() -> None:
    generator = np.random.default_rng(0)
    pilot = [
        row(f"lr-{n}", seed, float(generator.normal(0.3 + 0.1 * n, 0.04)), part="learning-rates")
        for n in range(200)
        for seed in (100, 101)
    ]
    deviation, settings = tables.pilot_deviation(pilot)
    assert settings == 200 and deviation == pytest.approx(0.04, rel=0.1)
    # The expected half width is about that of simulated pairs.
    drawn = generator.normal(0, 0.04 * 2**0.5, size=(4000, 8))
    assert tables.half_width(0.04, 8) == pytest.approx(2.3646 * (drawn.var(1, ddof=1) / 8).mean() ** 0.5, rel=0.03)
    assert tables.power([]) == ["Not measured yet."]
    greedy = [one | {"settings": {}} for one in pilot]
    assert tables.power(greedy) == ["Not measured yet."]


def test_the_deviation_of_the_first_pairs_says_how_many_are_needed() -> None:
    assert tables.two_stages(PAIRS[:9]) == ["Not measured yet."]  # one pair
    far = [row("uniform", n, 0.3) for n in range(10)] + [row("paper", n, 0.3 + 0.05 * (-1) ** n) for n in range(10)]
    (line,) = tables.two_stages(far)
    # s = 0.05 sqrt(8/7); (2.3646 s / 0.03)^2 = 17.75; half width with 10 pairs 2.3646 s / sqrt(10) = 4.0 points.
    assert (
        "standard deviation of 5.3 points, which asks for 18 pairs (at least 8 are trained, at most 16); there are 10."
        in line
    )
    assert line.endswith("+0.0 points (-4.0 to +4.0).")


def test_no_pair_is_made_of_two_machines_or_two_parts() -> None:
    with pytest.raises(ValueError, match=r"paper and uniform of seed 3 .* different machines"):
        tables.compared([*PAIRS[:11], PAIRS[11] | {"machine": "another"}], "task/last/call_accuracy")
    with pytest.raises(ValueError, match="uniform has seed 0 in two parts"):
        tables.compared([*PAIRS, row("uniform", 0, 0.5, part="controls")], "task/last/call_accuracy")


def test_rows_are_kept_once_a_trial(tmp_path: Path) -> None:
    file = tmp_path / "results" / "trials.jsonl"
    assert keep(PAIRS[:3], file) == 3
    assert keep([row("uniform", 1, 0.9), row("uniform", 1, 0.1, part="controls")], file) == 4
    assert {(one["part"], one["seed"]): one["figures"]["task/last/call_accuracy"] for one in read(file)}[
        "comparison", 1
    ] == 0.9


def test_pictures_are_drawn_of_what_there_is() -> None:
    assert plots.trials([]) is None and plots.curves([]) is None
    assert set(evidence_report.pictures(PAIRS, {})) == {"evidence-trials.png", "evidence-curves.png"}
    unfinished = [row("official", seed, 0.3, part="controls") for seed in range(plots.SEEDS - 1)]
    whole = [row("mask_only", seed, 0.3, part="controls") for seed in range(plots.SEEDS)]
    figure = plots.trials([*PAIRS, *unfinished, *whole])
    assert figure is not None
    shown = {label.get_text() for label in figure.axes[0].get_yticklabels()}
    assert shown == {"uniform", "paper", "mask_only"}


def test_a_policy_without_gradients_has_a_line_and_no_tables() -> None:
    _, gradients = evidence_report.measured()
    warm = gradients["warm policy"]
    none = {"settings": warm["settings"] | {"groups": 95, "with_signal": 1}, "tokens": warm["tokens"]}
    found = evidence_report.blocks(PAIRS, {"model as it is": none})
    assert "model as it is has too few gradients to compare: in 1 of 95 groups" in found["without-gradients"][0]
    assert found["gradients"] == found["regions"] == ["Not measured yet."] and len(found["tokens"]) > 3
    assert plots.gradients({"model as it is": none}) is None
    both = evidence_report.blocks(PAIRS, {"model as it is": none, "warm policy": warm})
    assert both["gradients"][0].startswith("The warm policy")


def test_the_page_has_the_tables_that_the_results_give() -> None:
    rows, gradients = evidence_report.measured()
    page = evidence_report.PAGE.read_text(encoding="utf-8")
    found = evidence_report.blocks(rows, gradients)
    assert evidence_report.filled(page, found) == page, "run make evidence"
    assert page.count("<!-- evidence: ") == len(found)
