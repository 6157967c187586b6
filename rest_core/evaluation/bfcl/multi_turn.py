"""A dialogue of BFCL's multi-turn categories as an environment: official tools, user turns, executor and verdict.

Source: the loop of `bfcl_eval/model_handler/base_handler.py` (bfcl-eval 2026.3.23), which a turn without calls ends.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from rest_core.data.tools import read_tool
from rest_core.environments.environment import EnvironmentFailed, Stop, Verdict
from rest_core.evaluation.bfcl.calls import executor_text
from rest_core.evaluation.bfcl.executor import Executor
from rest_core.evaluation.statistics import Mean
from rest_core.records import Message, Tool, ToolCall

MAX_STEPS = 21  # in a turn: the official loop stops a dialogue when its count of steps is over 20
MORE_FUNCTIONS = "I have updated some more functions you can choose from. What about now?"
INFERENCE_ERROR = "multi_turn:inference_error"


class BfclDialogue:
    """`rest_core.environments.environment.Environment` of one official entry.

    Args:
        entry: as `checkers.questions` gives it.
        native_tools: how functions that a miss_func dialogue held back are added: to the tools, with a user message
            that says so (bfcl-eval's function-calling loop), or as descriptions in that message (its prompting loop).
    """

    def __init__(self, entry: Mapping[str, Any], executor: Executor, *, native_tools: bool) -> None:
        self._entry, self._executor, self._native_tools = entry, executor, native_tools
        self._functions: list[dict[str, Any]] = list(entry["function"])
        self._turns: list[list[list[str]]] = []  # calls as Python text, by turn and step
        self._error = ""
        self.tools = read_functions(self._functions)

    @property
    def documents(self) -> tuple[dict[str, Any], ...]:
        return tuple(self._functions)

    def user_turn(self, said: str) -> tuple[Message, ...] | None:
        number = len(self._turns)
        if number == len(self._entry["question"]):
            return None
        self._turns.append([])
        if added := self._entry.get("missed_function", {}).get(str(number)):
            return (Message("user", self._add(added)),)
        return tuple(Message(turn["role"], turn["content"]) for turn in self._entry["question"][number])

    def step(self, calls: Sequence[ToolCall]) -> list[str]:
        self._turns[-1].append([executor_text(call) for call in calls])
        try:
            return self._execute()
        except EnvironmentFailed as error:
            self._error = str(error)
            raise

    def verdict(self, stop: Stop) -> Verdict:
        """Official, of a dialogue that was stopped for its steps as well; one that could not go on is an error."""
        if stop in ("prompt_too_long", "failed"):
            return Verdict(False, INFERENCE_ERROR, self._error or "a prompt is over the limit")
        return self._executor.judge(self._entry["id"], self._turns)

    @property
    def _steps(self) -> list[list[str]]:
        return [step for turn in self._turns for step in turn]

    def _execute(self) -> list[str]:
        """Results of the last step."""
        return self._executor.execute(self._entry["id"], self._steps)

    def _add(self, functions: list[dict[str, Any]]) -> str:
        if not self._native_tools:
            return f"{functions}\n{MORE_FUNCTIONS}"
        self._functions += functions
        self.tools = read_functions(self._functions)
        return MORE_FUNCTIONS


def read_functions(functions: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """The tools that BFCL's descriptions of functions mean; dialogues that share a list get the same object."""
    return _read(json.dumps(functions))


@lru_cache(maxsize=256)
def _read(functions: str) -> tuple[Tool, ...]:
    return tuple(read_tool(function, foreign_types=True) for function in json.loads(functions))


def averages_over_samples(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mean]:
    """Of each category with k samples a dialogue: the mean of all, pass@k (any is right) and pass^k (all are)."""
    averages: dict[str, Mean] = {}
    for category in {row["category"]: None for row in rows if "samples" in row}:
        valid = [[sample["valid"] for sample in row["samples"]] for row in rows if row["category"] == category]
        k = len(valid[0])
        averages[f"{category}_mean_of_{k}"] = Mean(Counter(sum(samples) / k for samples in valid))
        averages[f"{category}_pass_at_{k}"] = Mean(Counter(float(any(samples)) for samples in valid))
        averages[f"{category}_pass_hat_{k}"] = Mean(Counter(float(all(samples)) for samples in valid))
    return averages


def callable_names(entry: Mapping[str, Any]) -> frozenset[str]:
    """The functions of a dialogue's classes, held back or not: the official executor knows all of them."""
    held_back = [function for functions in entry.get("missed_function", {}).values() for function in functions]
    return frozenset(function["name"] for function in (*entry["function"], *held_back))
