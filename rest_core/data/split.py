"""Seeded splits that keep each group on one side, and the groups of samples that belong together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence


def families(samples: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """The family of each opening. Samples of equal calls belong to one family, and so do those of one opening.

    Args:
        samples: of each sample the first user turn, which the steps of one dialogue share, and the calls of its answer;
            None where equal calls are no sign that two samples ask for the same.

    Returns:
        By opening, the family's first opening in alphabetical order.
    """
    parent: dict[str, str] = {}

    def root(opening: str) -> str:
        while (above := parent.setdefault(opening, opening)) != opening:
            parent[opening] = parent[above]  # shortens the way for the next
            opening = above
        return opening

    first_with: dict[str, str] = {}
    for opening, calls in samples:
        ours = theirs = root(opening)
        if calls is not None:
            theirs = root(first_with.setdefault(calls, opening))
        parent[max(ours, theirs)] = min(ours, theirs)
    return {opening: root(opening) for opening in list(parent)}


def chosen_groups(groups: Sequence[str], fraction: float, seed: int) -> set[str]:
    """Groups with about `fraction` of the members, at least one group chosen and one not; none of a single group.

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
        # A group that overshoots by more than it brings nearer is not chosen, and neither is the last one left.
        if count + sizes[group] - wanted <= wanted - count and count + sizes[group] < len(groups):
            chosen.add(group)
            count += sizes[group]
        if count >= wanted:
            break
    return chosen or {min(order, key=lambda group: sizes[group])}
