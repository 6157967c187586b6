"""A seeded part of a benchmark, for evaluations that must be short."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def seeded_subset(items: Sequence[T], limit: int | None, *, seed: int, name: str) -> list[T]:
    """`limit` of the items in their own order, or all of them.

    Which ones depends on the seed, the name and the number of items alone, so that a category's subset is the same
    whatever else is evaluated.
    """
    if limit is None or limit >= len(items):
        return list(items)
    chosen = random.Random(f"{seed}:{name}").sample(range(len(items)), limit)
    return [items[index] for index in sorted(chosen)]
