"""How many items of a category are right."""

from __future__ import annotations

from dataclasses import dataclass

from rest_core.evaluation.statistics import Interval, wilson_interval


@dataclass(frozen=True)
class Score:
    """How many items of a category are right."""

    correct: int
    total: int  # at least 1

    @property
    def accuracy(self) -> float:
        return self.correct / self.total

    @property
    def interval(self) -> Interval:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, self.total)
