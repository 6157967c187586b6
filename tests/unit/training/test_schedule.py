from __future__ import annotations

from collections import Counter

import pytest

from rest_core.config import RlConfig
from rest_core.training.schedule import Schedule


def schedule(tasks: int = 6, *, process: int = 0, processes: int = 1, **changes: int) -> Schedule:
    return Schedule(RlConfig(**{"prompts_per_step": 4, "steps": 3, **changes}), tasks, process, processes)


def test_every_task_is_trained_on_once_an_epoch() -> None:
    made = schedule()
    seen = [n for step in range(1, 7) for n in made.visited(made.visits(step, range(4)))]  # 24 places: four epochs
    epochs = [seen[start : start + 6] for start in range(0, 24, 6)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    assert Counter(seen) == dict.fromkeys(range(6), 4)


def test_extra_prompts_are_no_planned_ones_and_each_round_has_its_own() -> None:
    made = schedule(resample_rounds=2)
    seen = [n for step in (1, 2, 3) for number in (0, 1, 2) for n in made.visits(step, range(4), number)]
    assert sorted(seen) == list(range(3 * 4 * 3))
    assert seen[:4] == [0, 1, 2, 3] and seen[4:8] == [12, 13, 14, 15] and seen[12:16] == [4, 5, 6, 7]


def test_every_response_has_random_numbers_of_its_own() -> None:
    made = schedule()
    seeds = [seed for step in (1, 2) for number in (0, 1) for seed in made.seeds(step, made.places, number)]
    assert len(set(seeds)) == len(seeds) == 16
    assert not set(seeds) & set(schedule(seed=1).seeds(1, made.places))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_places_of_a_step_are_dealt_out(processes: int) -> None:
    parts = [schedule(process=n, processes=processes).places for n in range(processes)]
    assert sorted(place for part in parts for place in part) == [0, 1, 2, 3]
