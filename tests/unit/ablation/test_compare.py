from __future__ import annotations

import pytest

from rest_core.ablation.collect import TrialResult
from rest_core.ablation.compare import Comparison, compare
from rest_core.ablation.settings import Trial
from rest_core.config import PaperWeights, UniformWeights

WEIGHTS = {"uniform": UniformWeights(), "paper": PaperWeights(), "strong": PaperWeights(w_max=32)}


def results(values: dict[str, dict[int, float]]) -> list[TrialResult]:
    return [
        TrialResult(Trial(name=name, seed=seed, weights=WEIGHTS[name]), {"x": value})
        for name, by_seed in values.items()
        for seed, value in by_seed.items()
    ]


def compared(values: dict[str, dict[int, float]], baseline: str = "uniform") -> Comparison:
    found = compare(results(values), "x", baseline=baseline, confidence=0.95)
    assert found is not None
    return found


def test_worked_numbers() -> None:
    found = compared({"uniform": {0: 1.0, 1: 2.0, 2: 3.0}, "paper": {0: 1.5, 1: 2.4, 2: 3.6}})
    uniform, paper, apart = found.schemes["uniform"], found.schemes["paper"], found.differences["paper"]
    # t(0.975, 2) = 4.302653
    assert (uniform.mean, uniform.deviation) == (2.0, 1.0)
    assert uniform.interval is not None
    assert uniform.interval.high == pytest.approx(2 + 4.302653 / 3**0.5, abs=1e-5)
    assert paper.mean == pytest.approx(2.5)
    # Differences 0.5, 0.4, 0.6: the seeds' own spread is gone.
    assert apart.mean == pytest.approx(0.5)
    assert apart.interval is not None
    assert apart.interval.low == pytest.approx(0.5 - 4.302653 * 0.1 / 3**0.5, abs=1e-5)
    assert apart.p == pytest.approx(0.0131, abs=1e-4)  # t = 8.66 with 2 degrees of freedom
    assert apart.p_holm == apart.p
    assert "uniform" not in found.differences


def test_differences_are_over_common_seeds_only() -> None:
    found = compared({"uniform": {0: 1.0, 1: 2.0}, "paper": {1: 5.0, 2: 100.0}, "strong": {7: 1.0}})
    assert found.differences["paper"].values == {1: 3.0}
    assert found.differences["paper"].interval is None
    assert found.differences["paper"].p is None
    assert "strong" not in found.differences
    assert set(found.schemes) == {"uniform", "paper", "strong"}


def test_several_schemes_are_adjusted_together() -> None:
    found = compared(
        {
            "uniform": {0: 0.0, 1: 0.0, 2: 0.0},
            "paper": {0: 0.10, 1: 0.11, 2: 0.12},
            "strong": {0: 0.1, 1: 0.3, 2: 0.2},
        }
    )
    paper, strong = found.differences["paper"], found.differences["strong"]
    assert paper.p is not None and strong.p is not None
    assert paper.p_holm == pytest.approx(2 * paper.p)
    assert strong.p_holm == pytest.approx(max(strong.p, 2 * paper.p))


def test_a_difference_that_cannot_be_tested_was_asked_about_all_the_same() -> None:
    others = {"uniform": {0: 0.0, 1: 0.0, 2: 0.0}, "paper": {0: 0.10, 1: 0.11, 2: 0.12}}
    found = compared({**others, "strong": {0: 0.1, 1: 0.1, 2: 0.1}}).differences  # equal: no spread
    assert found["strong"].p is None and found["strong"].p_holm is None
    assert found["paper"].p is not None and found["paper"].p_holm == pytest.approx(2 * found["paper"].p)


def test_equal_values_claim_no_certainty() -> None:
    found = compared({"uniform": {0: 0.3, 1: 0.2}, "paper": {0: 0.4, 1: 0.3}})  # 0.1 each, but for rounding
    assert found.differences["paper"].mean == pytest.approx(0.1)
    assert found.differences["paper"].interval is None
    assert found.differences["paper"].p is None


def test_without_the_baseline_there_are_no_differences_and_without_values_nothing() -> None:
    assert compared({"paper": {0: 1.0}}).differences == {}
    assert compare(results({"paper": {0: 1.0}}), "y", baseline="paper", confidence=0.95) is None


@pytest.mark.parametrize(
    ("metric", "share"), [("bfcl/live", True), ("bfcl/count/live", False), ("reward/after", False)]
)
def test_which_figures_are_shares(metric: str, share: bool) -> None:
    assert Comparison(metric, {}, {}).is_share is share
