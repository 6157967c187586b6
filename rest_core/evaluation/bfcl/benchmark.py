"""The benchmark BFCL: single-turn, multi-turn and memory categories with bfcl-eval's own questions and checkers."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rest_core.config import BfclConfig, GenerationConfig
from rest_core.data import bfcl_wheel
from rest_core.environments.environment import Environment
from rest_core.errors import UserError
from rest_core.evaluation.benchmark import Benchmark, Figures, Hold, Question, Row
from rest_core.evaluation.bfcl import (
    categories,
    checkers,
    dialogue_files,
    format_sensitivity,
    formats,
    memory,
    multi_turn,
    result_files,
)
from rest_core.evaluation.bfcl.executor import Executor
from rest_core.evaluation.policy import Answer, Chat, Policy
from rest_core.evaluation.statistics import Accuracy
from rest_core.evaluation.taxonomy import ExpectedCall
from rest_core.records import Message, ToolCall
from rest_core.response import Response

log = logging.getLogger(__name__)

MISSED_FUNCTIONS = {
    True: "multi_turn_miss_func: held-back functions join the tools, with a message that says so (bfcl-eval's wording "
    "for function-calling models)",
    False: "multi_turn_miss_func: held-back functions are described in a user message, the tools stay as they were "
    "(bfcl-eval's wording for prompted models)",
}
"""By whether the policy's tools are native."""


class Bfcl(Benchmark):
    """The categories that its section names."""

    name = "bfcl"
    title = "BFCL"
    max_steps = multi_turn.MAX_STEPS

    def __init__(self, config: BfclConfig) -> None:
        super().__init__(config.generation, config.limit_per_category, config.seed)
        self._categories = categories.select(config.categories)
        self._max_dialogue_tokens, self._samples = config.max_dialogue_tokens, config.samples
        self._executor = Executor()
        self._native_tools = False
        self._names: dict[str, frozenset[str]] = {}  # that a dialogue may call, by its id
        self._conversations: dict[str, dict[str, Any]] = {}  # those of memory categories, by id, in their order
        self._memories = memory.Memories()
        if any(category.scorer == "memory" for category in self._categories):
            memory.check_packages()

    @property
    def has_dialogues(self) -> bool:
        return any(category.has_dialogues for category in self._categories)

    @property
    def longest_prompt(self) -> int:
        return max(self.generation.max_prompt_tokens, self._max_dialogue_tokens if self.has_dialogues else 0)

    @property
    def limits(self) -> dict[str, Any]:
        if not self.has_dialogues:
            return super().limits
        return super().limits | {"max_dialogue_tokens": self._max_dialogue_tokens, "samples": self._samples}

    @property
    def checker(self) -> str:
        return f"bfcl-eval {checkers.version()}"

    def questions(self) -> dict[str, list[Question]]:
        loaded = checkers.questions(list({category.file: None for category in self._categories}))
        found: dict[str, list[Question]] = {category.name: [] for category in self._categories}
        for name, entries in loaded.items():
            self._conversations |= {entry["id"]: entry for entry in entries if memory.is_conversation(entry)}
            asked = [entry for entry in entries if not memory.is_conversation(entry)]
            for entry, expected in zip(asked, _expected(name, asked), strict=True):
                category = format_sensitivity.category_of(entry["id"]) or name
                if category in found:
                    found[category].append(Question(entry["id"], category, entry, expected))
        return found

    def chat(self, question: Question) -> Chat:
        """The functions are described as BFCL describes them to a model."""
        return Chat(
            tools=multi_turn.read_functions(question.entry["function"]),
            history=tuple(Message(turn["role"], turn["content"]) for turn in question.entry["question"][0]),
            documents=tuple(question.entry["function"]),
            prompt=tuple(Message(turn["role"], turn["content"]) for turn in question.entry.get("prompt", ())) or None,
        )

    def reader(self, question: Question) -> Callable[[str], Response] | None:
        return partial(formats.parse, name=question.category) if "prompt" in question.entry else None

    def subset_of(self, category: str) -> str:
        return categories.CATEGORIES[category].file

    def prepare(self, questions: Sequence[Question], policy: Policy, hold: Hold) -> None:
        """Have the policy write the memories that the questions are about.

        Raises:
            UserError: the policy cannot be asked in BFCL's own prompts, and questions of format_sensitivity are.
        """
        if not policy.keeps_prompts and any("prompt" in question.entry for question in questions):
            raise UserError(
                "bfcl.categories: format_sensitivity has prompts of its own, and "
                f"a policy under {policy.condition} takes none; "
                "set model.prompt_style to a built-in one such as toolrl, and for an endpoint "
                "evaluation.endpoint.prompting=prompt"
            )
        self._native_tools, self._memories = policy.native_tools, memory.Memories()
        needed = {id_: None for question in questions for id_ in question.entry.get("depends_on", ())}
        conversations = [entry for id_, entry in self._conversations.items() if id_ in needed]
        self._names |= {entry["id"]: multi_turn.callable_names(entry) for entry in conversations}
        self._memories.write(conversations, self._samples, self._executor, hold)

    def environments(self, question: Question, *, native_tools: bool) -> list[Environment]:
        if not categories.CATEGORIES[question.category].has_dialogues:
            return []
        self._names[question.id] = multi_turn.callable_names(question.entry)
        return [self._environment(question, sample, native_tools) for sample in range(self._samples)]

    def _environment(self, question: Question, sample: int, native_tools: bool) -> Environment:
        entry = question.entry
        if categories.CATEGORIES[question.category].scorer == "memory":
            return memory.MemoryDialogue(entry, self._executor, self._memories.of(entry, sample))
        return multi_turn.BfclDialogue(entry, self._executor, native_tools=native_tools)

    @property
    def dialogue_generation(self) -> GenerationConfig:
        return self.generation.model_copy(update={"max_prompt_tokens": self._max_dialogue_tokens})

    def judge(self, questions: Sequence[Question], answers: Sequence[Answer]) -> list[Row]:
        """The official verdict on every answer. A skipped question counts as wrong, whatever its category."""
        calls: dict[str, list[tuple[str, Sequence[ToolCall]]]] = defaultdict(list)
        for question, answer in zip(questions, answers, strict=True):
            calls[categories.CATEGORIES[question.category].file].append((question.id, answer.parsed.calls))
        verdicts = {category: iter(found) for category, found in checkers.check(calls).items()}
        rows = []
        for question, answer in zip(questions, answers, strict=True):
            verdict = next(verdicts[categories.CATEGORIES[question.category].file])
            if "prompt" in question.entry:
                verdict = formats.unreadable(answer.parsed) or verdict
            if answer.skipped is not None:
                # Without an answer there is no call, which the irrelevance checker would take for a right one.
                verdict = checkers.Verdict(False, "skipped_prompt", answer.skipped)
            rows.append({"category": question.category, **asdict(verdict)})
        return rows

    def figures(self, rows: Sequence[Row]) -> Figures:
        scores = self._scores(rows)
        notes = [
            self.checker,
            f"score again: bfcl evaluate --model {result_files.HANDLER} --partial-eval, with BFCL_PROJECT_ROOT set to "
            "this directory",
        ]
        if failed := sum(checkers.failed(row["error_type"]) for row in rows):
            notes.append(f"{failed} answers on which the official checker raised an exception count as wrong")
            log.warning("BFCL: %s", notes[-1])
        counts = {name: score.total for name, score in scores.items()} | {"checker_errors": failed}
        dialogues = [row for row in rows if "turns" in row]
        if "multi_turn_miss_func" in scores:
            notes.append(MISSED_FUNCTIONS[self._native_tools])
        for name in {row["category"]: None for row in dialogues}:
            counts[f"skipped_{name}"] = sum(r["skipped"] is not None for r in dialogues if r["category"] == name)
        if note := self._memories.failures():
            notes.append(note)
            log.warning("BFCL: %s", note)
        averages = (
            categories.averages(scores) | multi_turn.averages_over_samples(dialogues) | format_sensitivity.mean(rows)
        )
        values = format_sensitivity.spread(scores)
        return Figures(scores, averages, counts, tuple(notes), categories.HEADLINE, values)

    def _scores(self, rows: Sequence[Row]) -> dict[str, Accuracy]:
        valid = {c.name: [row["valid"] for row in rows if row["category"] == c.name] for c in self._categories}
        return {name: Accuracy(sum(found), len(found)) for name, found in valid.items()}

    def write_files(self, out: Path, model_name: str, answers: Sequence[Answer], rows: Sequence[Row]) -> None:
        result_files.clear(out)
        pairs = [(answer, row) for answer, row in zip(answers, rows, strict=True) if "turns" not in row]
        result_files.write(out, model_name, pairs, format_sensitivity.header(self._scores(rows)))
        dialogue_files.write(out, model_name, [row for row in rows if "turns" in row], self._names)
        dialogue_files.write_conversations(out, self._memories.conversations, self._names)

    def close(self) -> None:
        self._executor.close()


def _expected(
    category: str, entries: Sequence[dict[str, Any]]
) -> Sequence[Sequence[ExpectedCall | Sequence[str]] | None]:
    """The calls that the official answers to a category's questions hold, in the questions' order.

    Questions that want no call expect none; those that any call answers, an unknown one.
    """
    if category == format_sensitivity.FILE:
        questions = [format_sensitivity.question_of(entry["id"]) for entry in entries]
        known: dict[str, Any] = {}
        for name in {question.rsplit("_", 1)[0] for question in questions}:
            asked = list(bfcl_wheel.questions(name))
            known |= zip([entry["id"] for entry in asked], _expected(name, asked), strict=True)
        return [known[question] for question in questions]
    scorer = categories.CATEGORIES[category].scorer
    if scorer == "relevance":
        return [() if "irrelevance" in category else None] * len(entries)
    if scorer == "memory":  # whose answers are words
        return [None] * len(entries)
    answers = [answer["ground_truth"] for answer in bfcl_wheel.questions(category, "possible_answer")]
    if scorer == "multi_turn":
        return answers
    return [tuple(_call(*item) for call in answer for item in call.items()) for answer in answers]


def _call(name: str, accepted: dict[str, list[Any]]) -> ExpectedCall:
    """Args:
    accepted: a list of values an argument; an empty text among them allows to leave it out.
    """
    optional = frozenset(argument for argument, values in accepted.items() if "" in values)
    return ExpectedCall(name, accepted, optional)
