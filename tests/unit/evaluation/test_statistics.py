import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.evaluation.statistics import wilson_interval


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
