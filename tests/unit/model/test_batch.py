from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rest_core.model.attention import Tree
from rest_core.model.batch import (
    Batch,
    Group,
    empty_batch,
    pad_rows,
    padded_batch,
    padded_passes,
    shared_batch,
    shared_passes,
)
from rest_core.records import Rollout


def rollout(prompt: int, response: int) -> Rollout:
    return Rollout(list(range(10, 10 + prompt)), list(range(50, 50 + response)), [0.0] * response, True, 0)


def padded(rollouts: list[Rollout], pad_id: int = 7) -> Batch:
    return padded_batch(rollouts, [Group(tuple(range(len(rollouts))))], pad_id=pad_id)


LENGTHS = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30)), min_size=1, max_size=25)


def test_prompts_are_padded_on_the_left_and_responses_on_the_right() -> None:
    batch = padded([rollout(2, 3), rollout(3, 1)])
    assert batch.input_ids.tolist() == [[7, 10, 11, 50, 51, 52], [10, 11, 12, 50, 7, 7]]
    assert batch.attention_mask.tolist() == [[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2, 3, 4], [0, 1, 2, 3, 3, 3]]
    assert batch.targets.tolist() == [50, 51, 52, 50]
    assert batch.predict_at.tolist() == [2, 3, 4, 8]  # the token before each of them
    assert batch.rows.tolist() == [0, 0, 0, 1]
    assert batch.columns.tolist() == [0, 1, 2, 0]


def test_a_prompt_comes_once_for_its_group() -> None:
    rollouts = [rollout(2, 3), rollout(3, 1), rollout(2, 2), rollout(2, 0), rollout(3, 2)]
    batch = shared_batch(rollouts, [Group((0, 2, 3)), Group((4, 1))], pad_id=7, multiple=4)
    assert batch.input_ids.tolist() == [[10, 11, 50, 51, 50, 10, 11, 12, 50, 7, 7, 7]]
    assert batch.attention_mask.tolist() == [[1] * 9 + [0] * 3]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2, 0, 1, 2, 3, 0, 0, 0]]
    assert batch.targets.tolist() == [50, 51, 52, 50, 51, 50, 51, 50]
    assert batch.predict_at.tolist() == [1, 2, 3, 1, 4, 7, 8, 7]
    assert batch.rows.tolist() == [0, 0, 0, 2, 2, 4, 4, 1]
    assert batch.columns.tolist() == [0, 1, 2, 0, 1, 0, 1, 0]
    assert batch.trees is not None and batch.trees.trees == (Tree(2, (2, 1, 0)), Tree(3, (1, 0)))
    exact = shared_batch(rollouts, [Group((0, 2, 3)), Group((4, 1))], pad_id=7)
    assert exact.input_ids.tolist() == [batch.input_ids[0, :9].tolist()]


def test_the_padding_id_may_be_a_token_of_the_text() -> None:
    batch = padded([Rollout([7, 7], [7, 8], [0.0, 0.0], True, 0), rollout(3, 3)])
    assert batch.targets.tolist() == [7, 8, 50, 51, 52]
    assert batch.attention_mask[0].tolist() == [0, 1, 1, 1, 1, 0]


def test_a_batch_without_rows_is_one_token_that_predicts_nothing() -> None:
    for shared in (False, True):
        batch = empty_batch(7, shared=shared)
        assert batch.input_ids.tolist() == [[7]] and batch.attention_mask.tolist() == [[1]]
        assert not len(batch.targets) and not len(batch.predict_at)
        assert (batch.trees is not None) == shared


def test_pad_rows_fills_to_the_width() -> None:
    filled = pad_rows([[1.0, 2.0], torch.tensor([3.0])], 3, torch.float32, fill=-1)
    assert filled.tolist() == [[1, 2, -1], [3, -1, -1]]


def rows_of(passes: list[list[Group]]) -> list[list[int]]:
    return [[row for group in groups for row in group.rows] for groups in passes]


@given(LENGTHS, st.integers(1, 200))
def test_every_row_is_in_one_part_and_the_budget_holds(lengths: list[tuple[int, int]], budget: int) -> None:
    rollouts = [rollout(*pair) for pair in lengths]
    indices = list(range(0, len(rollouts), 2))
    passes = padded_passes(rollouts, indices, budget)
    assert sorted(row for rows in rows_of(passes) for row in rows) == indices
    for rows, groups in zip(rows_of(passes), passes, strict=True):
        assert rows
        tokens = padded_batch(rollouts, groups, pad_id=0).input_ids
        assert len(rows) == 1 or tokens.numel() <= budget


@given(LENGTHS, st.integers(1, 200))
def test_shared_passes_hold_every_row_once_within_the_budget(lengths: list[tuple[int, int]], budget: int) -> None:
    rollouts = [rollout(1 + prompt % 4, response) for prompt, response in lengths]  # prompts that come again
    indices = list(range(0, len(rollouts), 2))
    passes = shared_passes(rollouts, indices, budget)
    assert sorted(row for rows in rows_of(passes) for row in rows) == indices
    for rows, groups in zip(rows_of(passes), passes, strict=True):
        assert rows and all(len({len(rollouts[n].prompt_ids) for n in group.rows}) == 1 for group in groups)
        tokens = shared_batch(rollouts, groups, pad_id=0).input_ids
        assert len(rows) == 1 or tokens.numel() <= budget
    if budget >= sum(map(sum, lengths)) + 4 * len(lengths):
        assert len(passes) == 1 and len(passes[0]) == len({len(rollouts[n].prompt_ids) for n in indices})


@given(LENGTHS, st.integers(1, 200), st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_of_the_indices(lengths, budget, random) -> None:
    rollouts = [rollout(*pair) for pair in lengths]
    shuffled = list(range(len(rollouts)))
    random.shuffle(shuffled)
    assert padded_passes(rollouts, shuffled, budget) == padded_passes(rollouts, range(len(rollouts)), budget)
    assert shared_passes(rollouts, shuffled, budget) == shared_passes(rollouts, range(len(rollouts)), budget)


def test_a_budget_is_used_and_the_longest_come_first() -> None:
    rollouts = [rollout(2, 2), rollout(6, 4), rollout(2, 2), rollout(2, 2)]
    assert rows_of(padded_passes(rollouts, range(4), 12)) == [[1], [0, 2, 3]]
    assert rows_of(padded_passes(rollouts, range(4), 10**6)) == [[1, 0, 2, 3]]
    assert padded_passes(rollouts, [], 12) == []
    # The last token of a response takes no place: 6 + 3 tokens, and 2 + 1 + 1 + 1 for the group of three.
    assert shared_passes(rollouts, range(4), 13) == [[Group((1,))], [Group((0, 2, 3))]]
    assert shared_passes(rollouts, range(4), 14) == [[Group((1,)), Group((0, 2, 3))]]
    assert shared_passes(rollouts, [], 12) == []


def test_a_group_larger_than_the_budget_is_divided_and_its_prompt_repeated() -> None:
    rollouts = [rollout(4, 4) for _ in range(5)]  # 4 + 5 · 3 tokens
    assert shared_passes(rollouts, range(5), 19) == [[Group((0, 1, 2, 3, 4))]]
    assert shared_passes(rollouts, range(5), 18) == [[Group((0, 1, 2, 3))], [Group((4,))]]
    assert shared_passes(rollouts, range(5), 10) == [[Group((0, 1))], [Group((2, 3))], [Group((4,))]]
    assert shared_passes(rollouts, range(5), 1) == [[Group((n,))] for n in range(5)]
