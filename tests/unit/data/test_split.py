from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from rest_core.data.split import chosen_groups, families

GROUPS = [f"g{n}" for n in range(100)]


def test_fraction_seed_and_order():
    chosen = chosen_groups(GROUPS, 0.1, seed=0)
    assert len(chosen) == 10
    assert chosen == chosen_groups(GROUPS[::-1], 0.1, seed=0)
    assert chosen != chosen_groups(GROUPS, 0.1, seed=1)


def test_nothing_is_chosen_at_fraction_zero_or_of_one_group():
    assert chosen_groups(GROUPS, 0.0, 0) == set()
    assert chosen_groups(["a", "a"], 0.5, 0) == set()
    assert chosen_groups([], 0.5, 0) == set()


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_neither_side_is_empty(groups: list[str], fraction: float, seed: int):
    chosen = chosen_groups(groups, fraction, seed)
    if len(set(groups)) > 1:
        assert 0 < sum(group in chosen for group in groups) < len(groups)


def test_a_large_group_does_not_swallow_the_training_set():
    groups = ["large"] * 80 + [f"g{n}" for n in range(20)]
    for seed in range(20):
        chosen = chosen_groups(groups, 0.1, seed)
        assert sum(group in chosen for group in groups) == 10


def test_families_by_opening_and_by_calls():
    dialogue = [("book a room", None), ("book a room", "book(1)")]
    rewordings = [("how warm", "weather(Oslo)"), ("is it warm", "weather(Oslo)"), ("warm in Rome", "weather(Rome)")]
    found = families([*rewordings, *dialogue, ("how warm", None), ("hi", None), ("hello", None)])
    assert found == {
        "book a room": "book a room",
        "how warm": "how warm",
        "is it warm": "how warm",
        "warm in Rome": "warm in Rome",
        "hi": "hi",
        "hello": "hello",
    }


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([None, *"12345"])), max_size=12), st.randoms())
def test_families_are_the_connected_parts_whatever_the_order(samples: list[tuple[str, str | None]], random: Random):
    found = families(samples)
    shuffled = random.sample(samples, len(samples))
    assert families(shuffled) == found
    for opening, family in found.items():  # spreads from the opening until nothing is added
        part, size = {opening}, 0
        while len(part) > size:
            size = len(part)
            calls = {call for name, call in samples if name in part and call is not None}
            part |= {name for name, call in samples if call in calls}
        assert family == min(part)
