import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.evaluation.statistics import (
    Accuracy,
    Average,
    holm,
    mcnemar,
    mean_is_zero,
    paired_interval,
    stratified_interval,
    t_interval,
)


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


def test_an_average_of_one_part_has_the_normal_interval_of_that_part():
    # p ± 1.96 sqrt(p (1 − p) / (n − 1)): a bootstrap that draws n − 1 items
    interval = Average({"a": Accuracy(300, 1000)}, {"a": 1.0}).interval
    assert interval.low == pytest.approx(0.3 - 0.02842, abs=0.0015)
    assert interval.high == pytest.approx(0.3 + 0.02842, abs=0.0015)


def test_the_interval_of_an_average_adds_the_variances_of_its_parts():
    parts = {"a": Accuracy(50, 101), "b": Accuracy(20, 26), "c": Accuracy(5, 11)}
    weights = {"a": 0.2, "b": 0.3, "c": 0.5}
    average = Average(parts, weights)
    variance = sum(weights[k] ** 2 * p.value * (1 - p.value) / (p.total - 1) for k, p in parts.items())
    assert average.value == pytest.approx(0.2 * 50 / 101 + 0.3 * 20 / 26 + 0.5 * 5 / 11)
    width = average.interval.high - average.interval.low
    assert width == pytest.approx(2 * 1.96 * variance**0.5, rel=0.03)
    assert average.interval == Average(dict(parts), weights).interval  # seeded


@pytest.mark.parametrize("right, low, high", [(0, 0, 3.841459 / 47.841459), (4, 1 - 3.841459 / 47.841459, 1)])
def test_answers_that_are_all_alike_still_leave_doubt(right, low, high):
    parts = {name: Accuracy(right, 4) for name in "abcdefghijk"}
    interval = Average(parts, dict.fromkeys(parts, 1 / 11)).interval
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-6)


@pytest.mark.parametrize("items, at_least", [(8, 0.92), (50, 0.935)])
def test_the_interval_of_an_average_holds_the_truth_about_as_often_as_it_says(items, at_least):
    generator = random.Random(1)
    chances = (0.15, 0.3, 0.5, 0.6, 0.8)
    truth = sum(chances) / 5
    held = 0
    for _ in range(400):
        right = [sum(generator.random() < chance for _ in range(items)) for chance in chances]
        interval = stratified_interval((0.2, Accuracy(count, items).tally) for count in right)
        held += interval.low <= truth <= interval.high
    assert held / 400 >= at_least


def test_paired_interval_against_published_numbers():
    # Newcombe 1998, table II, method 10: (a, b, c, d) with the difference of the first minus the second
    interval = paired_interval(both=36, gained=2, lost=12, neither=0)
    assert (-interval.high, -interval.low) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    interval = paired_interval(both=0, gained=0, lost=0, neither=44)
    assert (interval.low, interval.high) == pytest.approx((-0.0803, 0.0803), abs=1e-4)


@given(st.lists(st.integers(0, 40), min_size=4, max_size=4).filter(sum))
def test_paired_interval_holds_the_difference_and_turns_around(counts):
    both, gained, lost, neither = counts
    interval, turned = paired_interval(*counts), paired_interval(both, lost, gained, neither)
    difference = (gained - lost) / sum(counts)
    assert interval.low - 1e-9 <= difference <= interval.high + 1e-9
    assert interval.low >= -1 - 1e-9 and interval.high <= 1 + 1e-9
    assert (interval.low, interval.high) == pytest.approx((-turned.high, -turned.low), abs=1e-9)


def test_mcnemar_against_worked_numbers():
    assert mcnemar(0, 0) == 1
    assert mcnemar(6, 0) == pytest.approx(2 / 2**6)
    assert mcnemar(2, 8) == mcnemar(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 2**10)


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
