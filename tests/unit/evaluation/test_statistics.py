from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.evaluation.statistics import compare_paired, wilson_interval


def test_wilson_interval_against_worked_numbers():
    # p = 0.5, n = 100, z = 1.959964: centre 0.5, margin z sqrt(0.25/100 + z²/40000) / (1 + z²/100) = 0.096167
    interval = wilson_interval(50, 100)
    assert interval.low == pytest.approx(0.403833, abs=1e-5)
    assert interval.high == pytest.approx(0.596167, abs=1e-5)
    # 0 of 10: [0, z² / (n + z²)]
    interval = wilson_interval(0, 10)
    assert interval.low == pytest.approx(0.0, abs=1e-12)
    assert interval.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)


def test_wilson_interval_knows_nothing_from_no_items():
    interval = wilson_interval(0, 0)
    assert (interval.low, interval.high) == (0.0, 1.0)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_is_symmetric(counts):
    correct, total = counts
    interval, mirrored = wilson_interval(correct, total), wilson_interval(total - correct, total)
    assert 0 <= interval.low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-9)


@pytest.mark.parametrize("correct, total", [(3, 2), (-1, 2)])
def test_wilson_interval_refuses_impossible_counts(correct, total):
    with pytest.raises(ValueError, match="correct of"):
        wilson_interval(correct, total)


def test_paired_comparison_against_worked_numbers():
    # 10 items only the challenger has, 2 only the incumbent, 20 both, 8 neither.
    challenger = [True] * 10 + [False] * 2 + [True] * 20 + [False] * 8
    incumbent = [False] * 10 + [True] * 2 + [True] * 20 + [False] * 8
    found = compare_paired(challenger, incumbent)
    assert (found.items, found.only_challenger, found.only_incumbent) == (40, 10, 2)
    assert found.difference == pytest.approx(0.2)
    # two-sided binomial: 2 (C(12,0) + C(12,1) + C(12,2)) / 2^12 = 2 · 79 / 4096
    assert found.p_value == pytest.approx(2 * (1 + 12 + comb(12, 2)) / 4096)
    # The normal approximation of the paired difference: 0.2 ± 1.96 sqrt((12/40 − 0.2²)/40) = 0.2 ± 0.158
    assert found.interval.low == pytest.approx(0.2 - 0.158, abs=0.03)
    assert found.interval.high == pytest.approx(0.2 + 0.158, abs=0.03)


def test_paired_comparison_of_equal_models():
    found = compare_paired([True, False, True], [True, False, True])
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert (found.interval.low, found.interval.high) == (0.0, 0.0)


def test_paired_comparison_is_a_function_of_its_seed():
    a, b = [True] * 30 + [False] * 30, [False] * 10 + [True] * 20 + [False] * 30
    assert compare_paired(a, b, seed=3) == compare_paired(a, b, seed=3)


@pytest.mark.parametrize("a, b, message", [([True], [], "not the same items"), ([], [], "no items")])
def test_paired_comparison_needs_the_same_items(a, b, message):
    with pytest.raises(ValueError, match=message):
        compare_paired(a, b)
