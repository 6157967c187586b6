"""The part of an evaluation that differs by benchmark: questions, verdicts, figures. `evaluate` does the rest.

This module and those of the benchmarks import quickly: configurations are checked against the names of their figures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rest_core.config import GenerationConfig
from rest_core.environments.environment import Environment
from rest_core.evaluation.policy import Answer, Chat
from rest_core.evaluation.statistics import Accuracy

Row = dict[str, Any]  # of rows.jsonl: one a question


@dataclass(frozen=True)
class Question:
    """A question of a benchmark; the benchmark needs `entry` to put it and to judge an answer."""

    id: str
    category: str
    entry: Any


@dataclass(frozen=True)
class Figures:
    """The figures of an evaluation, by names that get the benchmark's before them ("bfcl/live")."""

    scores: Mapping[str, Accuracy]  # in the order in which they are shown
    averages: Mapping[str, float] = field(default_factory=dict)  # as fractions
    counts: Mapping[str, int] = field(default_factory=dict)  # under "count/"
    notes: tuple[str, ...] = ()  # how the figures came about


class Benchmark(ABC):
    """A benchmark under its settings.

    Args:
        generation: limits of prompts and responses.
        limit: questions of each category that are put, a seeded choice; None puts them all.
        seed: of that choice.
    """

    name: ClassVar[str]  # "bfcl": stands before the names of its metrics
    title: ClassVar[str]
    max_steps: ClassVar[int] = 20  # with calls, in one turn of a dialogue

    def __init__(self, generation: GenerationConfig, limit: int | None, seed: int) -> None:
        self.generation, self.limit, self.seed = generation, limit, seed

    @abstractmethod
    def questions(self) -> dict[str, list[Question]]:
        """All questions by category, each category at least one."""

    @abstractmethod
    def chat(self, question: Question) -> Chat:
        """What puts a question to a policy; of a dialogue, the first chat."""

    def environments(self, question: Question, *, native_tools: bool) -> list[Environment]:
        """The environments of a question that takes a dialogue, one a sample; none where one response answers it.

        Args:
            native_tools: of the policy.
        """
        return []

    @property
    def dialogue_generation(self) -> GenerationConfig:
        """Limits of each step of a dialogue."""
        return self.generation

    @abstractmethod
    def judge(self, questions: Sequence[Question], answers: Sequence[Answer]) -> list[Row]:
        """A row's columns about its answer, for each question: its category, whether the answer is right, why not.

        Questions that take a dialogue are not among them: their environments judge.
        """

    @abstractmethod
    def figures(self, rows: Sequence[Row]) -> Figures:
        """The figures of the rows that `judge` has begun."""

    def write_files(  # noqa: B027
        self, out: Path, model_name: str, answers: Sequence[Answer], rows: Sequence[Row]
    ) -> None:
        """Write files in the benchmark's own layout to the directory `out`; none by default."""

    def close(self) -> None:  # noqa: B027
        """End processes that the evaluation has used; none by default."""
