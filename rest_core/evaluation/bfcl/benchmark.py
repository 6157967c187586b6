"""The benchmark BFCL: single-turn categories with bfcl-eval's own questions and checkers."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rest_core.config import BfclConfig
from rest_core.data import bfcl_wheel
from rest_core.data.tools import read_tool
from rest_core.evaluation.benchmark import Benchmark, Figures, Question, Row
from rest_core.evaluation.bfcl import categories, checkers, result_files
from rest_core.evaluation.policy import Answer, Chat
from rest_core.evaluation.statistics import Accuracy
from rest_core.evaluation.taxonomy import ExpectedCall
from rest_core.records import Message, ToolCall

log = logging.getLogger(__name__)


class Bfcl(Benchmark):
    """The categories that its section names."""

    name = "bfcl"
    title = "BFCL"

    def __init__(self, config: BfclConfig) -> None:
        super().__init__(config.generation, config.limit_per_category, config.seed)
        self._categories = categories.select(config.categories)

    @property
    def checker(self) -> str:
        return f"bfcl-eval {checkers.version()}"

    def questions(self) -> dict[str, list[Question]]:
        loaded = checkers.questions([category.name for category in self._categories])
        return {
            name: [
                Question(entry["id"], name, entry, expected)
                for entry, expected in zip(entries, _expected(name, len(entries)), strict=True)
            ]
            for name, entries in loaded.items()
        }

    def chat(self, question: Question) -> Chat:
        """The functions are described as BFCL describes them to a model."""
        return Chat(
            tools=tuple(read_tool(function, foreign_types=True) for function in question.entry["function"]),
            history=tuple(Message(turn["role"], turn["content"]) for turn in question.entry["question"][0]),
            documents=tuple(question.entry["function"]),
        )

    def judge(self, questions: Sequence[Question], answers: Sequence[Answer]) -> list[Row]:
        """The official verdict on every answer. A question that was not put counts as wrong, whatever its category."""
        calls: dict[str, list[tuple[str, Sequence[ToolCall]]]] = defaultdict(list)
        for question, answer in zip(questions, answers, strict=True):
            calls[question.category].append((question.id, answer.parsed.calls))
        verdicts = {category: iter(found) for category, found in checkers.check(calls).items()}
        rows = []
        for question, answer in zip(questions, answers, strict=True):
            verdict = next(verdicts[question.category])
            if answer.skipped is not None:
                # Without an answer there is no call, which the irrelevance checker would take for a right one.
                verdict = checkers.Verdict(False, "skipped_prompt", answer.skipped)
            rows.append({"category": question.category, **asdict(verdict)})
        return rows

    def figures(self, rows: Sequence[Row]) -> Figures:
        scores = {}
        for category in self._categories:
            valid = [row["valid"] for row in rows if row["category"] == category.name]
            scores[category.name] = Accuracy(sum(valid), len(valid))
        notes = [
            self.checker,
            f"score again: bfcl evaluate --model {result_files.HANDLER} --partial-eval, with BFCL_PROJECT_ROOT set to "
            "this folder",
        ]
        if failed := sum(checkers.failed(row["error_type"]) for row in rows):
            notes.append(f"{failed} answers on which the official checker raised an exception count as wrong")
            log.warning("BFCL: %s", notes[-1])
        counts = {name: score.total for name, score in scores.items()} | {"checker_errors": failed}
        return Figures(scores, categories.averages(scores), counts, tuple(notes), categories.HEADLINE)

    def write_files(self, out: Path, model_name: str, answers: Sequence[Answer], rows: Sequence[Row]) -> None:
        result_files.write(out, model_name, answers, rows)


def _expected(category: str, number: int) -> list[tuple[ExpectedCall, ...] | None]:
    """The calls that the official answers to a category's questions hold, in the questions' order.

    Questions that want no call expect none; those that any call answers, an unknown one.
    """
    if categories.CATEGORIES[category].scorer == "relevance":
        return [() if "irrelevance" in category else None] * number
    answers = bfcl_wheel.questions(category, "possible_answer")
    return [tuple(_call(*item) for call in answer["ground_truth"] for item in call.items()) for answer in answers]


def _call(name: str, accepted: dict[str, list[Any]]) -> ExpectedCall:
    """Args:
    accepted: a list of values an argument; an empty text among them allows to leave it out.
    """
    optional = frozenset(argument for argument, values in accepted.items() if "" in values)
    return ExpectedCall(name, accepted, optional)
