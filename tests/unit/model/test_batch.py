from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rest_core.model.batch import make_batch, micro_batches, pad_rows
from rest_core.records import Rollout


def rollout(prompt: int, response: int) -> Rollout:
    return Rollout(list(range(10, 10 + prompt)), list(range(50, 50 + response)), [0.0] * response, True, 0)


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=25)


def test_prompts_are_padded_on_the_left_and_responses_on_the_right() -> None:
    batch = make_batch([rollout(2, 3), rollout(3, 1)], pad_id=7)
    assert batch.input_ids.tolist() == [[7, 10, 11, 50, 51, 52], [10, 11, 12, 50, 7, 7]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 3, 3]]
    assert batch.response_ids.tolist() == [[50, 51, 52], [50, 7, 7]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]


def test_the_padding_id_may_be_a_token_of_the_text() -> None:
    batch = make_batch([Rollout([7, 7], [7, 8], [0.0, 0.0], True, 0), rollout(3, 3)], pad_id=7)
    assert batch.mask[0].tolist() == [True, True, False]
    assert batch.attention_mask[0].tolist() == [0, 1, 1, 1, 1, 0]


def test_pad_rows_fills_to_the_width() -> None:
    padded = pad_rows([[1.0, 2.0], torch.tensor([3.0])], 3, torch.float32, fill=-1)
    assert padded.tolist() == [[1, 2, -1], [3, -1, -1]]


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_part_and_the_budget_holds(lengths: list[tuple[int, int]], budget: int) -> None:
    rollouts = [rollout(*pair) for pair in lengths]
    indices = list(range(0, len(rollouts), 2))
    parts = list(micro_batches(rollouts, indices, budget))
    assert sorted(n for part in parts for n in part) == indices
    for part in parts:
        assert part
        assert len(part) == 1 or make_batch([rollouts[n] for n in part], 0).input_ids.numel() <= budget


@given(LENGTHS, st.integers(1, 200), st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_of_the_indices(lengths, budget, random) -> None:
    rollouts = [rollout(*pair) for pair in lengths]
    shuffled = list(range(len(rollouts)))
    random.shuffle(shuffled)
    assert list(micro_batches(rollouts, shuffled, budget)) == list(
        micro_batches(rollouts, range(len(rollouts)), budget)
    )


def test_a_budget_is_used_and_the_longest_come_first() -> None:
    rollouts = [rollout(2, 2), rollout(6, 4), rollout(2, 2), rollout(2, 2)]
    assert list(micro_batches(rollouts, range(4), 12)) == [[1], [0, 2, 3]]
    assert list(micro_batches(rollouts, range(4), 10**6)) == [[1, 0, 2, 3]]
    assert list(micro_batches(rollouts, [], 12)) == []
