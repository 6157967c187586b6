"""FlexAttention is compiled once a length of rows, and training has many lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention

from rest_core.model import attention
from rest_core.model.attention import FLEX_BLOCK, Tree, Trees


def test_every_length_of_rows_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's own limit is 8: from the ninth length on, attention would run unfused, with all scores in memory."""
    compiled: list[Any] = []

    def count(graph: Any, inputs: list[Any]) -> Any:
        compiled.append(graph)
        return graph

    counted = torch.compile(flex_attention, dynamic=False, backend=count)
    monkeypatch.setattr(attention, "_compiled_flex", lambda: counted)
    lengths = [FLEX_BLOCK * blocks for blocks in range(1, 10)]
    # Another mask of the same length is no reason to compile again.
    for length, prompt in [*((length, 3) for length in lengths), (FLEX_BLOCK, 40)]:
        query, key, value = (torch.randn(1, heads, length, 4) for heads in (2, 1, 1))
        trees = Trees((Tree(prompt, (20, length - prompt - 20)),))
        assert attention._flex(query, key, value, trees, 0.5).shape == (1, 2, length, 4)
    assert len(compiled) == len(lengths)
