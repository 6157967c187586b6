"""BFCL's memory categories: the policy writes a memory in conversations with a user, then answers questions with it.

Each scenario has conversations in an order. The first begins without a memory, every other with what the one before
has left, and the scenario's questions with what the last has left. Source: `process_memory_test_case` in
`bfcl_eval/utils.py` and the loop of `bfcl_eval/model_handler/base_handler.py` (bfcl-eval 2026.3.23).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rest_core.environments.dialogue import Dialogue
from rest_core.environments.environment import EnvironmentFailed, Stop, Verdict
from rest_core.errors import UserError
from rest_core.evaluation.benchmark import Hold, Task
from rest_core.evaluation.bfcl.executor import Executor, Memory
from rest_core.evaluation.bfcl.multi_turn import BfclDialogue
from rest_core.records import Message

INFERENCE_ERROR = "agentic:inference_error"
REQUIREMENTS = {"overrides": "overrides==7.7.0", "rank_bm25": "rank-bm25==0.2.2"}  # as in requirements/no-deps.txt

Entry = Mapping[str, Any]
Scenario = tuple[str, str]  # its category and its name


def check_packages() -> None:
    """`UserError` where a package is missing that bfcl-eval's memory classes import."""
    if missing := [line for name, line in REQUIREMENTS.items() if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"bfcl.categories: memory categories need packages that are not installed; install them with: "
            f"pip install --no-deps {' '.join(missing)}"
        )


def is_conversation(entry: Entry) -> bool:
    """Whether an entry is a conversation that writes memory, and not a question."""
    return "_prereq_" in entry["id"]


def scenario_of(entry: Entry) -> Scenario:
    return entry["involved_classes"][0], entry["scenario"]


class MemoryDialogue(BfclDialogue):
    """`rest_core.environments.environment.Environment` of one official entry, a conversation or a question.

    Args:
        entry: as `checkers.questions` gives it.
        memory: at its beginning; None where nothing was kept.
    """

    def __init__(self, entry: Entry, executor: Executor, memory: Memory | None) -> None:
        super().__init__(entry, executor, native_tools=False)
        self._memory, self._said = memory, ""

    def user_turn(self, said: str) -> tuple[Message, ...] | None:
        self._said = said
        messages = super().user_turn(said)
        if messages is None or len(self._turns) > 1:
            return messages
        prompt = self._executor.memory_prompt(self._entry["id"], self._memory)
        if messages[0].role != "system":
            return (Message("system", prompt), *messages)
        return (Message("system", f"{prompt}\n\n{messages[0].content}"), *messages[1:])

    def verdict(self, stop: Stop) -> Verdict:
        """Official: does the last response hold an accepted answer? Without a response there is none."""
        if stop in ("prompt_too_long", "failed"):
            reason = "a prompt is over the limit" if stop == "prompt_too_long" else "the dialogue could not begin"
            return Verdict(False, INFERENCE_ERROR, self._error or reason)
        return self._executor.judge_answer(self._entry["id"], answer_text(self._said))

    def memory_after(self, stop: Stop) -> Memory | None:
        """The memory that a conversation leaves. One that could not go on leaves what it began with, as officially."""
        if stop in ("prompt_too_long", "failed"):
            return self._memory
        return self._executor.memory_after(self._entry["id"], self._steps, self._memory)

    def _execute(self) -> list[str]:
        return self._executor.execute(self._entry["id"], self._steps, self._memory)


def answer_text(response: str) -> str:
    """A response without its thoughts, as bfcl-eval's handler of `result_files.HANDLER` keeps it.

    A block that this handler would read, and our parser has not, loses its form; answers hold none.
    """
    return response.rpartition("</think>")[2].lstrip("\n").replace("<tool_call>\n", "<tool_call> \n")


@dataclass(frozen=True)
class Conversation:
    """A conversation that was held."""

    entry: Entry
    sample: int
    dialogue: Dialogue
    memory: Memory | None  # that it has left
    error: str | None  # why it has left what it began with


@dataclass
class Memories:
    """The memories that the policy writes, each sample its own."""

    by_scenario: dict[tuple[Scenario, int], Memory | None] = field(default_factory=dict)
    conversations: list[Conversation] = field(default_factory=list)

    def write(self, entries: Sequence[Entry], samples: int, executor: Executor, hold: Hold) -> None:
        """Hold the conversations: the first of every scenario together, then the second of every scenario, and so on.

        Args:
            entries: conversations, those of a scenario in their order.
        """
        queues: dict[Scenario, list[Entry]] = {}
        for entry in entries:
            queues.setdefault(scenario_of(entry), []).append(entry)
        for number in range(max(map(len, queues.values()), default=0)):
            entries = [queue[number] for queue in queues.values() if number < len(queue)]
            round_ = [(entry, sample) for entry in entries for sample in range(samples)]
            made = [MemoryDialogue(entry, executor, self.of(entry, sample)) for entry, sample in round_]
            tasks = [Task(entry["id"], sample, one) for (entry, sample), one in zip(round_, made, strict=True)]
            for (entry, sample), one, dialogue in zip(round_, made, hold(tasks), strict=True):
                self._keep(entry, sample, one, dialogue)

    def of(self, entry: Entry, sample: int) -> Memory | None:
        """The memory with which a conversation or a question begins now."""
        return self.by_scenario.get((scenario_of(entry), sample))

    def failures(self) -> str | None:
        """How many conversations could not go on; None where all could."""
        failed = [one for one in self.conversations if one.error is not None]
        if not failed:
            return None
        return (
            f"{len(failed)} of {len(self.conversations)} conversations that write memory could not go on, and left it "
            f"as it was; the first is {failed[0].entry['id']}: {failed[0].error}"
        )

    def _keep(self, entry: Entry, sample: int, made: MemoryDialogue, dialogue: Dialogue) -> None:
        assert dialogue.stop is not None
        memory, error = self.of(entry, sample), dialogue.error if dialogue.stop != "step_limit" else None
        try:
            memory = made.memory_after(dialogue.stop)
        except EnvironmentFailed as failure:
            error = str(failure)
        self.by_scenario[scenario_of(entry), sample] = memory
        self.conversations.append(Conversation(entry, sample, dialogue, memory, error))
