"""Scripted dialogues of BFCL's memory categories, put through our own loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from multi_turn_scripts import BROKEN, Script

from rest_core.config import BfclConfig
from rest_core.data import bfcl_wheel
from rest_core.evaluation.benchmark import Question
from rest_core.evaluation.bfcl.benchmark import Bfcl
from rest_core.evaluation.bfcl.calls import block
from rest_core.evaluation.evaluate import evaluate
from rest_core.evaluation.evaluation_report import EvaluationReport, write_jsonl
from rest_core.records import ToolCall

CATEGORIES = ("memory_kv", "memory_rec_sum")


@cache
def loaded() -> tuple[dict[str, list[Question]], dict[str, Any]]:
    """Questions by category, and conversations by id."""
    benchmark = Bfcl(BfclConfig(categories=CATEGORIES))
    return benchmark.questions(), benchmark._conversations


@cache
def accepted() -> dict[str, list[str]]:
    """The official answers, by the category's questions in their order."""
    answers = [answer["ground_truth"] for answer in bfcl_wheel.questions("memory", "possible_answer")]
    questions, _ = loaded()
    return {q.id: answer for c in CATEGORIES for q, answer in zip(questions[c], answers, strict=True)}


class Chosen(Bfcl):
    """BFCL with some questions about memories."""

    ids: frozenset[str]
    held: dict[str, Any]

    def questions(self) -> dict[str, list[Question]]:
        questions, self._conversations = loaded()
        return {c.name: [q for q in questions[c.name] if q.id in self.ids] for c in self._categories}

    def prepare(self, questions: Any, policy: Any, hold: Any) -> None:
        def remembered(tasks: Any) -> Any:
            dialogues = hold(tasks)
            self.held.update((task.id, dialogue) for task, dialogue in zip(tasks, dialogues, strict=True))
            return dialogues

        super().prepare(questions, policy, remembered)


def run(
    texts: Mapping[tuple[str, int], Sequence[str]], out: Path, *, tokens: int = 1, **config: Any
) -> tuple[EvaluationReport, Chosen]:
    """Evaluate the questions that `texts` names, with the conversations that it scripts."""
    questions, _ = loaded()
    ids = {id_ for id_, _ in texts}
    named = tuple(c for c in CATEGORIES if any(q.id in ids for q in questions[c]))
    benchmark = Chosen(BfclConfig(categories=named, **config))
    benchmark.ids, benchmark.held = frozenset(ids), {}
    return evaluate(benchmark, Script(texts, tokens=tokens), out=out), benchmark


def conversations(id_: str) -> list[str]:
    """Ids of the conversations that a question depends on, in their order."""
    questions, _ = loaded()
    return next(list(q.entry["depends_on"]) for c in CATEGORIES for q in questions[c] if q.id == id_)


def written(id_: str, rng: random.Random) -> list[str]:
    """Texts of a conversation: in most turns something is written to the memory or read from it."""
    _, known = loaded()
    texts = []
    for turn, messages in enumerate(known[id_]["question"]):
        said = messages[0]["content"]
        calls = (_KV if "kv" in id_ else _REC_SUM)(f"turn_{turn}", said, rng)
        texts += ["\n".join(map(block, calls))] if rng.random() < 0.8 else []
        texts.append(rng.choice(["Noted.", "", "<think>Is that all?</think>\n\nYes, 'all' \"of\" {it}.", BROKEN]))
    return texts


def _KV(key: str, said: str, rng: random.Random) -> list[ToolCall]:
    kind = rng.choice(["core", "archival"])
    return [
        ToolCall(f"{kind}_memory_add", {"key": key, "value": said[: rng.choice([40, 290, 3000])]}),
        rng.choice(
            [
                ToolCall(f"{kind}_memory_remove", {"key": "turn_0"}),
                ToolCall(f"{kind}_memory_replace", {"key": "turn_1", "value": 'it\'s "{so}" \\ é'}),
                ToolCall(f"{kind}_memory_key_search", {"query": "turn 2", "k": 2}),
                ToolCall(f"{kind}_memory_retrieve", {"key": key}),
                ToolCall(f"{kind}_memory_list_keys", {}),
                ToolCall("core_memory_retrieve_all", {}),
                ToolCall("core_memory_add", {"key": "Not A Key", "value": 7}),
                ToolCall("forget", {}),
            ]
        ),
    ]


def _REC_SUM(key: str, said: str, rng: random.Random) -> list[ToolCall]:
    return [
        rng.choice(
            [
                ToolCall("memory_append", {"text": f"{said[:500]}\n"}),
                ToolCall("memory_append", {"text": said * 20}),
                ToolCall("memory_update", {"text": f"{key}: {said[:200]} {{x}}"}),
                ToolCall("memory_replace", {"old_text": " a ", "new_text": " the "}),
                ToolCall("memory_retrieve", {}),
                ToolCall("memory_clear", {}) if rng.random() < 0.2 else ToolCall("memory_retrieve", {"x": 1}),
            ]
        )
    ]


def _search(id_: str) -> str:
    call = ToolCall("core_memory_list_keys", {}) if "kv" in id_ else ToolCall("memory_retrieve", {})
    return block(call)


ANSWERS: dict[str, Callable[[str, str], list[str]]] = {
    "right": lambda id_, answer: [f"{{'answer': {answer!r}, 'context': 'You said so.'}}"],
    "right after a search": lambda id_, answer: [_search(id_), f"It is {answer}!"],
    "right after a thought": lambda id_, answer: [f"<think>Hm.</think>\n\n<response>{answer.upper()}</response>"],
    "right beside a broken call": lambda id_, answer: [f"{BROKEN} {answer}"],
    "right, with another block": lambda id_, answer: [
        _search(id_),
        f'<tool_call>\n{{"name": "x", "arguments": []}}\n</tool_call> {answer}',
    ],
    "unknown": lambda id_, answer: ["{'answer': 'I do not know', 'context': 'I do not know'}"],
    "a part of a longer word": lambda id_, answer: [f"x{answer}x"],
    "only thought": lambda id_, answer: [f"<think>{answer}</think>\n"],
    "only in a call": lambda id_, answer: [block(ToolCall("memory_append", {"text": answer})), "Done."],
    "nothing": lambda id_, answer: [""],
    "20 searches": lambda id_, answer: [*[_search(id_)] * 20, answer],
    "21 searches": lambda id_, answer: [*[_search(id_)] * 21, answer],
}


def scripted(ids: Sequence[str], seed: int = 0) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Texts of the questions, each of another kind, and before them those of all conversations; the kinds by id."""
    kinds = {id_: list(ANSWERS)[(n + seed) % len(ANSWERS)] for n, id_ in enumerate(ids)}
    needed = {conversation: None for id_ in ids for conversation in conversations(id_)}
    texts = {one: written(one, random.Random(f"{one}:{seed}")) for one in needed}
    return texts | {id_: ANSWERS[kind](id_, accepted()[id_][0]) for id_, kind in kinds.items()}, kinds


def messages_of(dialogue: Any) -> list[dict[str, Any]]:
    return [asdict(message) for message in dialogue.history]


def write_raw(out: Path, turns: Mapping[str, Any], category: str) -> None:
    """A result file as bfcl-eval's own loop gives it, with the thoughts that its handler takes out taken out."""
    results = [
        {"id": id_, "result": [[text.rpartition("</think>")[2].lstrip("\n") for text in turn] for turn in one]}
        for id_, one in turns.items()
        if "_prereq_" not in id_
    ]
    directory = out / "result" / "Qwen_Qwen3-1.7B-FC" / "agentic" / "memory" / category.partition("_")[2]
    write_jsonl(directory / f"BFCL_v4_{category}_result.json", results)
