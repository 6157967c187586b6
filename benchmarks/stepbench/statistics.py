"""Medians with their spread, and ratios of paired samples."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float
    count: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def spread(values: Sequence[float]) -> Spread:
    """Median, minimum and maximum.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no samples")
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """How many times as much `theirs` is: ratio of the medians, and the range of the ratios of paired samples.

    Args:
        ours, theirs: samples of the same rounds, in the same order.

    Raises:
        ValueError: the samples are not paired.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} samples cannot be paired with {len(theirs)}")
    pairs = [b / a for a, b in zip(ours, theirs, strict=True)]
    return Spread(statistics.median(theirs) / statistics.median(ours), min(pairs), max(pairs), len(pairs))
