"""Attention over trees against scaled_dot_product_attention with the dense mask of the same trees."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from rest_core.model import attention
from rest_core.model.attention import Tree, Trees, tree_mask

TREES = st.lists(
    st.builds(Tree, st.integers(1, 9), st.lists(st.integers(0, 8), max_size=4).map(tuple)), min_size=1, max_size=4
).map(lambda trees: Trees(tuple(trees)))
HEADS = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)])  # query heads, key heads


@pytest.fixture(autouse=True, params=[1, 3, 512])
def block(request: pytest.FixtureRequest, monkeypatch_module: pytest.MonkeyPatch) -> int:
    monkeypatch_module.setattr(attention, "QUERY_BLOCK", request.param)
    return int(request.param)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def used(trees: Trees) -> int:
    return sum(tree.prompt + sum(tree.branches) for tree in trees.trees)


def dense(trees: Trees, length: int) -> Tensor:
    """(L, L) bool, said in words: a token sees its prompt and its own branch, up to itself; padding sees padding."""
    tree_of, branch_of = (labels.tolist() for labels in trees.labels(length))
    return torch.tensor(
        [
            [
                tree_of[q] == tree_of[k] and branch_of[k] in (0, branch_of[q]) and k <= q
                if tree_of[q] >= 0
                else tree_of[k] < 0 and k <= q
                for k in range(length)
            ]
            for q in range(length)
        ]
    )


def random_inputs(heads: tuple[int, int], length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Query (1, H, L, d), and key and value (1, K, L, d)."""
    generator = torch.Generator().manual_seed(7 * length + heads[0])
    return [
        (2 * torch.randn(1, count, length, 5, generator=generator, dtype=torch.float64)).to(dtype).requires_grad_()
        for count in (heads[0], heads[1], heads[1])
    ]


def test_labels_by_hand() -> None:
    trees = Trees((Tree(2, (1, 0, 2)), Tree(1, ())))
    tree_of, branch_of = trees.labels(8)
    assert tree_of.tolist() == [0, 0, 0, 0, 0, 1, -1, -1]
    assert branch_of.tolist() == [0, 0, 1, 3, 3, 0, -1, -1]


@given(TREES)
@settings(deadline=None)
def test_segments_cover_every_query_once_and_see_what_the_mask_allows(trees: Trees) -> None:
    length = used(trees)
    seen = torch.zeros(length, length, dtype=torch.int64)
    for queries, shared, own in trees.segments():
        assert 0 < queries.stop - queries.start <= attention.QUERY_BLOCK
        assert own.stop == queries.stop and own.start <= queries.start
        seen[queries, shared] += 1
        for query in range(queries.start, queries.stop):
            seen[query, own.start : query + 1] += 1
    assert torch.equal(seen, dense(trees, length).long())


@given(TREES, HEADS, st.integers(0, 5), st.sampled_from([None, 0.3]))
@settings(deadline=None, max_examples=40)
def test_values_and_gradients_are_those_of_a_dense_mask(
    trees: Trees, heads: tuple[int, int], padding: int, scaling: float | None
) -> None:
    length = used(trees)
    inputs = random_inputs(heads, length + padding)
    ours, none = attention.attention(None, *inputs, None, trees=trees, scaling=scaling)
    assert none is None and ours.shape == (1, length + padding, heads[0], 5)
    mask = dense(trees, length + padding)
    theirs = scaled_dot_product_attention(*inputs, attn_mask=mask, scale=scaling, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(ours[:, :length], theirs[:, :length], rtol=1e-12, atol=1e-12)
    assert bool(ours.isfinite().all())  # also of padding, whose values mean nothing

    upstream = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=ours.dtype)
    upstream[:, length:] = 0  # nothing depends on padding
    for one, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(theirs, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_padding_gives_no_gradient_to_the_trees() -> None:
    trees = Trees((Tree(3, (2, 2)),))
    inputs = random_inputs((2, 1), 12)
    output, _ = attention.attention(None, *inputs, None, trees=trees)
    for gradient in torch.autograd.grad(output[:, 7:].sum(), inputs):
        assert not gradient[:, :, :7].any()


def test_the_gradient_is_that_of_finite_differences() -> None:
    trees = Trees((Tree(2, (2, 0, 1)), Tree(1, (1,))))
    inputs = random_inputs((4, 2), 7)
    assert torch.autograd.gradcheck(lambda *tensors: attention.attention(None, *tensors, None, trees=trees)[0], inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_types_are_kept_and_sums_over_branches_stay_precise(dtype: torch.dtype) -> None:
    trees = Trees((Tree(4, (3,) * 40),))  # the prompt's keys get gradients from 40 branches
    inputs = random_inputs((2, 1), used(trees), dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    ours, _ = attention.attention(None, *inputs, None, trees=trees)
    theirs, _ = attention.attention(None, *exact, None, trees=trees)
    assert ours.dtype == dtype
    for one, other in zip(
        torch.autograd.grad(ours.sum(), inputs), torch.autograd.grad(theirs.sum(), exact), strict=True
    ):
        assert one.dtype == dtype
        error = float((one.double() - other).norm() / other.norm())
        assert error < (0.03 if dtype == torch.bfloat16 else 1e-5)


def test_autocast_computes_in_its_type() -> None:
    inputs = random_inputs((2, 1), 5, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert attention.attention(None, *inputs, None, trees=Trees((Tree(2, (3,)),)))[0].dtype == torch.bfloat16
    output, _ = attention.attention(None, *inputs, None, trees=Trees((Tree(2, (3,)),)))
    assert output.dtype == torch.float32


def test_rows_without_trees_are_transformers_own() -> None:
    query, key, value = random_inputs((2, 2), 6)
    ours, _ = attention.attention(torch.nn.Module(), query, key, value, None, is_causal=True)
    theirs = scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@given(TREES, st.integers(0, 5))
@settings(deadline=None)
def test_the_mask_of_flex_attention_is_the_same(trees: Trees, padding: int) -> None:
    length = used(trees) + padding
    allowed = tree_mask(trees, length, "cpu")
    place = torch.arange(length)
    zero = torch.zeros((), dtype=torch.int64)
    assert torch.equal(allowed(zero, zero, place[:, None], place[None]), dense(trees, length))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_flex_attention_gives_the_same_values(heads: tuple[int, int]) -> None:
    """Its uncompiled form, which is what runs without a GPU; rows there are padded to a multiple of its block."""
    trees = Trees((Tree(40, (50, 0, 30)), Tree(25, (60,))))
    length = math.ceil(used(trees) / attention.FLEX_BLOCK) * attention.FLEX_BLOCK
    assert length > used(trees)
    query, key, value = (tensor.detach().float() for tensor in random_inputs(heads, length))
    mask = create_block_mask(tree_mask(trees, length, "cpu"), None, None, length, length, device="cpu")
    theirs = flex_attention(query, key, value, block_mask=mask, enable_gqa=True).transpose(1, 2)
    ours, _ = attention.attention(None, query, key, value, None, trees=trees)
    torch.testing.assert_close(ours[:, : used(trees)], theirs[:, : used(trees)], rtol=1e-4, atol=1e-4)
