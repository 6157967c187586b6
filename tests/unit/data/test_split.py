from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rest_core.data.split import validation_groups

GROUPS = [f"g{n}" for n in range(100)]


def test_fraction_seed_and_order():
    chosen = validation_groups(GROUPS, 0.1, seed=0)
    assert len(chosen) == 10
    assert chosen == validation_groups(GROUPS[::-1], 0.1, seed=0)
    assert chosen != validation_groups(GROUPS, 0.1, seed=1)


def test_nothing_validates_at_fraction_zero_or_with_one_group():
    assert validation_groups(GROUPS, 0.0, 0) == set()
    assert validation_groups(["a", "a"], 0.5, 0) == set()
    assert validation_groups([], 0.5, 0) == set()


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_neither_side_is_empty(groups: list[str], fraction: float, seed: int):
    chosen = validation_groups(groups, fraction, seed)
    if len(set(groups)) > 1:
        assert 0 < sum(group in chosen for group in groups) < len(groups)


def test_a_large_group_does_not_swallow_the_training_set():
    groups = ["large"] * 80 + [f"g{n}" for n in range(20)]
    for seed in range(20):
        chosen = validation_groups(groups, 0.1, seed)
        assert sum(group in chosen for group in groups) == 10
