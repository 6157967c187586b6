"""The tree of known token sequences: what it knows, what it shares, what it forgets."""

from __future__ import annotations

from itertools import takewhile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rest_core.rollout.prefix_tree import Layers, PrefixTree, matched, shared_beginnings, together

TOKEN_BYTES = 2 * 2 * 4  # one layer, two heads of size 1, keys and values in float32
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12)


def states(ids: list[int]) -> Layers:
    """Keys and values that say which token they are of, and which tokens came before."""
    value = torch.tensor([float(hash(tuple(ids[: n + 1])) % 10**6) for n in range(len(ids))])
    keys = value.expand(2, -1)[..., None]
    return [(keys, -keys)]


def insert(tree: PrefixTree, ids: list[int]) -> bool:
    (keys, values), *_ = states(ids)
    return tree.insert(ids, lambda first, end: [(keys[:, first:end], values[:, first:end])])


def known(tree: PrefixTree, ids: list[int]) -> torch.Tensor:
    parts = [node.layers[0][0][0, :count, 0] for node, count in tree.match(ids)]
    return torch.cat([*parts, torch.zeros(0)])


def common(one: list[int], other: list[int]) -> int:
    return len(list(takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))))


@given(sequences, st.lists(st.integers(0, 2), min_size=1, max_size=12))
def test_it_knows_the_longest_beginning_and_its_states(kept: list[list[int]], asked: list[int]) -> None:
    tree = PrefixTree(10**6)
    for ids in kept:
        assert insert(tree, ids)
    longest = max(common(ids, asked) for ids in kept)
    assert matched(tree.match(asked)) == longest
    assert torch.equal(known(tree, asked), states(asked)[0][0][0, :longest, 0])


@given(sequences)
def test_a_shared_beginning_takes_memory_once(kept: list[list[int]]) -> None:
    tree = PrefixTree(10**6)
    for ids in kept:
        insert(tree, ids)
    beginnings = {tuple(ids[: n + 1]) for ids in kept for n in range(len(ids))}
    assert tree._bytes == TOKEN_BYTES * len(beginnings)


@given(sequences)
def test_beginnings_that_another_sequence_has_as_well(prompts: list[list[int]]) -> None:
    expected = [
        max((common(one, other) for m, other in enumerate(prompts) if m != n), default=0)
        for n, one in enumerate(prompts)
    ]
    assert shared_beginnings(prompts) == expected


@given(sequences, st.integers(0, 30))
def test_the_budget_holds(kept: list[list[int]], tokens: int) -> None:
    tree = PrefixTree(tokens * TOKEN_BYTES)
    for n, ids in enumerate(kept):
        if n % 3 == 0:
            tree.begin()
        found = insert(tree, ids)
        assert tree._bytes <= tree.limit
        assert not found or matched(tree.match(ids)) == len(ids)
        assert torch.equal(known(tree, ids), states(ids)[0][0][0, : matched(tree.match(ids)), 0])


def test_what_two_rounds_did_not_use_makes_room() -> None:
    tree = PrefixTree(6 * TOKEN_BYTES)
    tree.begin()
    assert insert(tree, [1, 2, 3]) and insert(tree, [4, 5, 6])
    assert not insert(tree, [7]) and not tree.has_room(1)  # both are of this round
    tree.begin()
    assert matched(tree.match([1, 2, 9])) == 2  # used in this round; the other in the last
    assert not insert(tree, [7])
    tree.begin()
    assert tree.has_room(3) and insert(tree, [7, 8])
    assert matched(tree.match([4, 5, 6])) == 0 and matched(tree.match([1, 2, 3])) == 3


def test_a_dialogue_that_grows_keeps_its_place() -> None:
    tree = PrefixTree(100 * TOKEN_BYTES)
    ids = [0]
    for turn in range(1, 20):
        tree.begin()
        assert matched(tree.match(ids)) == (len(ids) if turn > 1 else 0)
        assert insert(tree, [*ids, turn])
        ids = [*ids, turn]
    tree.clear()
    assert tree.match(ids) == [] and tree._bytes == 0


@pytest.mark.parametrize("ids", [[], [1]])
def test_nothing_is_known_at_first(ids: list[int]) -> None:
    assert PrefixTree(0).match(ids) == [] and PrefixTree(0).has_room(1)


def test_sequences_go_together_as_far_as_they_are_kept() -> None:
    alone = [[n] * 128 for n in range(4)]
    assert [together(alone, tokens) for tokens in (0, 127, 256, 300, 512, 10**6)] == [1, 1, 2, 2, 4, 4]
    tools = list(range(1000, 1640))  # ten blocks that all have in common
    alike = [[*tools, *[n] * 64] for n in range(4)]
    assert together(alike, 640 + 2 * 64) == 2
    assert together(iter(alike), 640 + 4 * 64) == 4
