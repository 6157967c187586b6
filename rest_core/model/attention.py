"""Attention over trees of tokens: a prompt once, and after it the responses of its group side by side.

    row:    [ prompt A | response A1 | response A2 | prompt B | response B1 | ... ]
    a response token attends to its prompt and to the earlier tokens of its own response, to nothing else

The values are those of one row a response; what is shared is computed once. Models are switched to it by name, through
transformers' attention interface, and reach it with the trees of the row as an extra argument of their forward; without
one it is transformers' own scaled-dot-product attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "rest_trees"
QUERY_BLOCK = 512  # queries whose scores exist at the same time, for each head
FLEX_BLOCK = 128  # rows for FlexAttention are padded to a multiple of its block
FLEX_LENGTHS = 256  # kernels that may be compiled, one a length of rows; beyond the limit all scores would be in memory


class Tree(NamedTuple):
    """Lengths of one tree, whose tokens lie one after the other in a row."""

    prompt: int
    branches: tuple[int, ...]  # tokens of each response in the row; 0 is allowed


@dataclass(frozen=True)
class Trees:
    """The trees of one row; tokens after the last of them are padding, whose values mean nothing."""

    trees: tuple[Tree, ...]

    def segments(self) -> Iterator[tuple[slice, slice, slice]]:
        """(queries, shared keys, own keys) of every stretch of queries; the last own keys are the queries themselves.

        Queries attend to all shared keys and, causally, to the own keys.
        """
        start = 0
        for tree in self.trees:
            end = start + tree.prompt
            yield from _blocks(slice(start, start), start, end)
            prompt = slice(start, end)
            for length in tree.branches:
                yield from _blocks(prompt, end, end + length)
                end += length
            start = end

    def labels(self, length: int) -> tuple[Tensor, Tensor]:
        """(tree, branch) of every token of a row of `length`, both (L,) int32; branch 0 is the prompt, -1 padding."""
        tree_of = torch.full((length,), -1, dtype=torch.int32)
        branch_of = torch.full((length,), -1, dtype=torch.int32)
        start = 0
        for number, tree in enumerate(self.trees):
            for branch, count in enumerate((tree.prompt, *tree.branches)):
                tree_of[start : start + count] = number
                branch_of[start : start + count] = branch
                start += count
        return tree_of, branch_of


def _blocks(shared: slice, start: int, end: int) -> Iterator[tuple[slice, slice, slice]]:
    for low in range(start, end, QUERY_BLOCK):
        high = min(low + QUERY_BLOCK, end)
        yield slice(low, high), shared, slice(start, high)


def attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    trees: Trees | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that transformers' attention layers call.

    Args:
        query: (R, H, L, d).
        key, value: (R, K, L, d), K key/value heads.
        trees: of the one row (R = 1); None for rows without shared prefixes.

    Returns:
        (R, L, H, d).
    """
    if trees is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if torch.is_autocast_enabled(query.device.type):  # as scaled_dot_product_attention does
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if query.is_cuda:
        return _flex(query, key, value, trees, scale).transpose(1, 2).contiguous(), None
    output: Tensor = _TreeAttention.apply(query[0], key[0], value[0], trees, scale)  # (H, L, d)
    return output.transpose(0, 1)[None], None


class _TreeAttention(torch.autograd.Function):
    """Attention by plain matrix products, stretch by stretch; the scores are computed again in the backward pass.

    In bfloat16 on CPUs these products are faster than the fused kernels of scaled_dot_product_attention. The gradients
    of keys and values are summed over the branches in float32.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, trees: Trees, scale: float) -> Tensor:
        output = torch.zeros_like(query, memory_format=torch.contiguous_format)  # (H, L, d)
        for queries, shared, own in trees.segments():
            probabilities = _probabilities(query, key, queries, shared, own, scale)
            mixed = torch.bmm(probabilities, _keys(value, shared, own))  # (K, H/K · n, d)
            output[:, queries] = _by_head(mixed, query.shape[0])
        ctx.save_for_backward(query, key, value, output)
        ctx.trees, ctx.scale = trees, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, output = ctx.saved_tensors
        (gradient,) = gradients
        heads = query.shape[0]
        d_query = torch.zeros_like(query, memory_format=torch.contiguous_format)
        d_key = torch.zeros(key.shape, dtype=sum_dtype(key), device=key.device)
        d_value = torch.zeros(value.shape, dtype=sum_dtype(value), device=value.device)
        # Σ_j p_ij · dp_ij, as in the backward of a softmax.
        delta = (gradient.to(d_key.dtype) * output).sum(dim=-1, keepdim=True).to(query.dtype)  # (H, L, 1)
        groups = key.shape[0]
        for queries, shared, own in ctx.trees.segments():
            probabilities = _probabilities(query, key, queries, shared, own, ctx.scale)
            d_output = _by_group(gradient[:, queries], groups)
            _add(d_value, shared, own, torch.bmm(probabilities.transpose(1, 2), d_output))
            scores = torch.bmm(d_output, _keys(value, shared, own).transpose(1, 2))
            scores.sub_(_by_group(delta[:, queries], groups)).mul_(probabilities)
            mixed = torch.bmm(scores, _keys(key, shared, own)).mul_(ctx.scale)
            d_query[:, queries] = _by_head(mixed, heads)
            _add(d_key, shared, own, torch.bmm(scores.transpose(1, 2), _by_group(query[:, queries], groups)))
        return d_query, d_key.mul_(ctx.scale).to(key.dtype), d_value.to(value.dtype), None, None


def _probabilities(query: Tensor, key: Tensor, queries: slice, shared: slice, own: slice, scale: float) -> Tensor:
    """(K, H/K · n, m): of n queries over the m shared and own keys, heads that share a key head next to each other."""
    rows = _by_group(query[:, queries], key.shape[0])
    columns = _keys(key, shared, own).transpose(1, 2)
    empty = rows.new_empty(())
    scores = torch.baddbmm(empty, rows, columns, beta=0, alpha=scale)
    count = queries.stop - queries.start
    scores.view(-1, count, scores.shape[-1])[:, :, -count:].add_(_causal(count, scores.dtype, scores.device))
    return scores.softmax(dim=-1)


@cache
def _causal(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(count, count): 0 on and below the diagonal, -inf above it."""
    return torch.full((count, count), -torch.inf, dtype=dtype, device=device).triu_(1)


def _keys(values: Tensor, shared: slice, own: slice) -> Tensor:
    """(K, m, d): the shared and the own keys (or values) next to each other."""
    if shared.start == shared.stop:
        return values[:, own]
    return torch.cat([values[:, shared], values[:, own]], dim=1)


def _add(total: Tensor, shared: slice, own: slice, part: Tensor) -> None:
    """The reverse of `_keys`: (K, m, d) onto the gradients of the shared and the own keys."""
    count = shared.stop - shared.start
    if count:
        total[:, shared] += part[:, :count]
    total[:, own] += part[:, count:]


def _by_group(values: Tensor, groups: int) -> Tensor:
    """(H, n, d) → (K, H/K · n, d)."""
    return values.reshape(groups, -1, values.shape[-1])


def _by_head(values: Tensor, heads: int) -> Tensor:
    """(K, H/K · n, d) → (H, n, d)."""
    return values.view(heads, -1, values.shape[-1])


def sum_dtype(values: Tensor) -> torch.dtype:
    """The type that sums over `values` are kept in: at least float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def tree_mask(trees: Trees, length: int, device: torch.device | str) -> Any:
    """`mask_mod` of FlexAttention for a row of `length` tokens; padding attends to itself."""
    tree_of, branch_of = (labels.to(device) for labels in trees.labels(length))

    def allowed(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        near = (branch_of[key] == 0) | (branch_of[key] == branch_of[query])
        return (tree_of[query] == tree_of[key]) & near & (key <= query)

    return allowed


def _flex(query: Tensor, key: Tensor, value: Tensor, trees: Trees, scale: float) -> Tensor:
    mask = _block_mask(trees, query.shape[2], query.device)
    # Past its limit, 8 by default, dynamo does not compile for a new length: without a word it runs attention unfused.
    limits = {"recompile_limit": FLEX_LENGTHS, "accumulated_recompile_limit": FLEX_LENGTHS}
    with torch._dynamo.config.patch(limits):
        output: Tensor = _compiled_flex()(query, key, value, block_mask=mask, scale=scale, enable_gqa=True)
    return output


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


_last_mask: tuple[Trees, int, Any] | None = None


def _block_mask(trees: Trees, length: int, device: torch.device) -> Any:
    """The block mask of a row, made once for all its layers."""
    global _last_mask
    if _last_mask is None or _last_mask[0] is not trees or _last_mask[1] != length:
        from torch.nn.attention.flex_attention import create_block_mask

        mask = create_block_mask(tree_mask(trees, length, device), None, None, length, length, device=str(device))
        _last_mask = (trees, length, mask)
    return _last_mask[2]


@contextmanager
def implementation(model: Any, name: str) -> Iterator[None]:
    """The model attends by the registered function `name` within the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
