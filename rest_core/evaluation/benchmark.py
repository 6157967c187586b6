"""The part of an evaluation that differs by benchmark: questions, verdicts, figures. `evaluate` does the rest.

This module and those of the benchmarks import quickly: configurations are checked against the names of their figures.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from rest_core import __version__
from rest_core.config import GenerationConfig
from rest_core.environments.environment import Environment
from rest_core.evaluation.measurement import limits
from rest_core.evaluation.policy import Answer, Chat, Policy
from rest_core.evaluation.statistics import Accuracy, Average, Estimate, Mean
from rest_core.evaluation.taxonomy import ExpectedCall
from rest_core.response import Response

if TYPE_CHECKING:
    from rest_core.environments.dialogue import Dialogue

Row = dict[str, Any]  # of rows.jsonl: one a question


@dataclass(frozen=True)
class Question:
    """A question of a benchmark; the benchmark makes prompts and verdicts of `entry`."""

    id: str
    category: str
    entry: Any
    expected: Sequence[ExpectedCall | Sequence[str]] | None = None
    """The calls that are wanted, where the answer key names them; of a dialogue, those of each turn."""


@dataclass(frozen=True)
class Task:
    """A dialogue that is to be held; id and sample decide its seed."""

    id: str
    sample: int  # from 0
    environment: Environment


Hold: TypeAlias = "Callable[[Sequence[Task]], list[Dialogue]]"
"""Holds all dialogues together with the policy under evaluation; gives them in their order."""


@dataclass(frozen=True)
class Figures:
    """The figures of an evaluation, by names that get the benchmark's before them ("bfcl/live")."""

    scores: Mapping[str, Accuracy]  # in the order in which they are shown
    averages: Mapping[str, Average | Mean] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)  # under "count/"
    notes: tuple[str, ...] = ()  # how the figures came about
    headline: tuple[str, ...] = ()  # the scores and averages to read first
    values: Mapping[str, float] = field(default_factory=dict)  # further metrics, without an interval

    @property
    def all(self) -> dict[str, Estimate]:
        """Averages and scores, in the order in which they are shown."""
        return {**self.first, **self.averages, **self.scores}

    @property
    def first(self) -> dict[str, Estimate]:
        """The headline figures that were measured."""
        known = {**self.averages, **self.scores}
        return {name: known[name] for name in self.headline if name in known}


class Benchmark(ABC):
    """A benchmark under its settings.

    Args:
        generation: limits of prompts and responses.
        limit: questions of each category, a seeded choice; None takes them all.
        seed: of that choice.
    """

    name: ClassVar[str]  # "bfcl": stands before the names of its metrics
    title: ClassVar[str]
    rules: ClassVar[tuple[str, ...]] = ("valid",)
    """The columns of a row that hold verdicts."""
    max_steps: ClassVar[int] = 20  # with calls, in one turn of a dialogue

    def __init__(self, generation: GenerationConfig, limit: int | None, seed: int) -> None:
        self.generation, self.limit, self.seed = generation, limit, seed

    @property
    def limits(self) -> dict[str, Any]:
        """The settings that decide about answers: figures under different ones do not compare."""
        return limits(self.generation)

    @property
    def longest_prompt(self) -> int:
        """Tokens of the longest prompt that is allowed."""
        return self.generation.max_prompt_tokens

    def subset_of(self, category: str) -> str:
        """Categories that give the same name, and have as many questions, are limited to the same places of them."""
        return category

    @property
    def checker(self) -> str:
        """The rule that judges, with its version: verdicts of different ones do not compare."""
        return f"rest-pipelines {__version__}"

    @abstractmethod
    def questions(self) -> dict[str, list[Question]]:
        """All questions by category, each category at least one."""

    @abstractmethod
    def chat(self, question: Question) -> Chat:
        """The chat that a policy answers; of a dialogue, the first."""

    def prepare(self, questions: Sequence[Question], policy: Policy, hold: Hold) -> None:  # noqa: B027
        """Hold the dialogues whose outcome `environments` needs; none by default.

        Args:
            questions: all that the policy will be asked.

        Raises:
            UserError: the questions cannot be put to this policy.
        """

    def reader(self, question: Question) -> Callable[[str], Response] | None:
        """The parser of a single response, where the benchmark's own prompt asks for a format of its own."""
        return None

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
        """A row's columns about its answer, for each question: `category`, a verdict a rule, the error.

        `evaluate` adds the others of rows.jsonl where `judge` gives none: question, tools, expected calls, calls, kind
        of error, tokens, seconds. Questions that take a dialogue are not among them: their environments judge.
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
