"""A seeded split into training and validation that keeps each group on one side."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence


def validation_groups(groups: Sequence[str], fraction: float, seed: int) -> set[str]:
    """The groups that validate: about `fraction` of the members, whole groups, at least one of each side.

    The choice depends on the names of the groups and the seed alone, not on their order.

    Args:
        groups: the group of every member.
        fraction: wanted share of members, in [0, 1).
        seed: another seed, another choice.
    """
    sizes = Counter(groups)
    if fraction <= 0 or len(sizes) < 2:
        return set()
    wanted = max(1, round(fraction * len(groups)))
    order = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}\0{group}".encode()).digest())
    chosen: set[str] = set()
    count = 0
    for group in order:
        # A group that overshoots by more than it brings nearer stays in training, and so does the last one left.
        if count + sizes[group] - wanted <= wanted - count and count + sizes[group] < len(groups):
            chosen.add(group)
            count += sizes[group]
        if count >= wanted:
            break
    return chosen or {min(order, key=lambda group: sizes[group])}
