import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.evaluation.statistics import Accuracy, holm, mean_is_zero, t_interval


def test_wilson_interval_against_worked_numbers():
    # p = 0.5, n = 100, z = 1.959964: centre 0.5, margin z sqrt(0.25/100 + z²/40000) / (1 + z²/100) = 0.096167
    interval = Accuracy(50, 100).interval
    assert interval.low == pytest.approx(0.403833, abs=1e-5)
    assert interval.high == pytest.approx(0.596167, abs=1e-5)
    # 0 of 10: [0, z² / (n + z²)]
    interval = Accuracy(0, 10).interval
    assert interval.low == pytest.approx(0.0, abs=1e-12)
    assert interval.high == pytest.approx(3.841459 / 13.841459, abs=1e-6)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_holds_the_share_and_is_symmetric(counts):
    correct, total = counts
    interval, mirrored = Accuracy(correct, total).interval, Accuracy(total - correct, total).interval
    assert 0 <= interval.low <= correct / total + 1e-12
    assert correct / total - 1e-12 <= interval.high <= 1
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-9)


def test_t_interval_against_worked_numbers():
    # Student's own data (1908, hours of sleep gained), with R's t.test
    gained = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    interval = t_interval(gained)
    assert interval.low == pytest.approx(0.7001142, abs=1e-6)
    assert interval.high == pytest.approx(2.4598858, abs=1e-6)
    assert mean_is_zero(gained) == pytest.approx(0.002833, abs=1e-6)


@pytest.mark.parametrize("values", [[], [1.0], [0.1, 0.1], [0.3 - 0.2, 0.2 - 0.1, 0.4 - 0.3]])
def test_values_without_spread_give_no_interval_and_no_test(values):
    assert t_interval(values) is None
    assert mean_is_zero(values) is None


def test_t_interval_holds_the_mean_as_often_as_it_says():
    """Three normal values, as of three seeds; a normal interval would hold it in 80 of 100 cases."""
    generator = random.Random(0)
    draws = [[generator.gauss(5, 2) for _ in range(3)] for _ in range(4000)]
    held = sum(interval.low <= 5 <= interval.high for interval in map(t_interval, draws))
    assert held / len(draws) == pytest.approx(0.95, abs=0.012)


def test_holm_against_worked_numbers():
    # 4 × 0.005, 3 × 0.01, 2 × 0.03, and 0.04 not below the one before
    p_values = {"d": 0.04, "a": 0.005, "c": 0.03, "b": 0.01}
    assert holm(p_values) == pytest.approx({"a": 0.02, "b": 0.03, "c": 0.06, "d": 0.06})
    assert holm({"a": 0.9, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}
