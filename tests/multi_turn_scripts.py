"""Scripted BFCL dialogues: gold, or corrupted in one of many ways, put through our own loop."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import multi_turn_gold

from rest_core.config import BfclConfig, GenerationConfig
from rest_core.environments.dialogue import run_dialogues
from rest_core.evaluation.benchmark import Question
from rest_core.evaluation.bfcl import checkers
from rest_core.evaluation.bfcl.benchmark import Bfcl
from rest_core.evaluation.bfcl.calls import block
from rest_core.evaluation.bfcl.executor import Executor
from rest_core.evaluation.bfcl.multi_turn import MAX_STEPS, BfclDialogue
from rest_core.evaluation.evaluate import evaluate
from rest_core.evaluation.evaluation_report import EvaluationReport, write_jsonl
from rest_core.evaluation.policy import Answer, Chat, Progress
from rest_core.records import ToolCall
from rest_core.seeds import derive

Turns = list[list[list[ToolCall]]]  # calls by turn and step
BROKEN = '<tool_call>\n{"name": "ls", "arguments": {\n</tool_call>'


class Script:
    """A `Policy` whose text for a step is found by the step's seed."""

    name, condition, template, keeps_prompts = "script", "scripted", "", True

    def __init__(
        self,
        texts: Mapping[tuple[str, int], Sequence[str]],
        *,
        native_tools: bool = False,
        tokens: int = 1,
    ) -> None:
        """Args:
        texts: by the dialogue's id and the sample's number, one text a step.
        tokens: of every prompt.
        """
        self.native_tools, self._tokens = native_tools, tokens
        self._texts = {
            derive(derive(0, "dialogue", id_, sample), "step", number): text
            for (id_, sample), script in texts.items()
            for number, text in enumerate(script)
        }

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        if self._tokens > config.max_prompt_tokens:
            return [Answer("", self._tokens, 0, finished=False, skipped="prompt over the limit") for _ in chats]
        return [Answer(self._texts.get(chat.seed, ""), self._tokens, 1, finished=True) for chat in chats]


class Chosen(Bfcl):
    """BFCL with some of its questions, which are loaded once a process."""

    ids: frozenset[str]

    def questions(self) -> dict[str, list[Question]]:
        loaded = {category.name: multi_turn_gold.entries(category.name) for category in self._categories}
        return {
            name: [Question(id_, name, entry) for id_, entry in entries.items() if id_ in self.ids]
            for name, entries in loaded.items()
        }


def run(texts: Mapping[str, Sequence[str]], out: Path, *, seconds: float = 10, **policy: Any) -> EvaluationReport:
    """Evaluate scripted dialogues, one text a step, in our own loop."""
    named = {id_.rsplit("_", 1)[0] for id_ in texts}
    categories = tuple(c for c in multi_turn_gold.CATEGORIES if c in named)
    benchmark = Chosen(BfclConfig(categories=categories))
    benchmark.ids = frozenset(texts)
    benchmark._executor.seconds = seconds
    script = Script({(id_, 0): steps for id_, steps in texts.items()}, **policy)
    return evaluate(benchmark, script, out=out)


def histories(texts: Mapping[str, Sequence[str]], *, native_tools: bool) -> dict[str, dict[str, Any]]:
    """What our own loop makes of scripts: id → {"messages" of the dialogue, names of the "tools" at each step}."""
    executor = Executor()
    try:
        entries = {id_: multi_turn_gold.entries(id_.rsplit("_", 1)[0])[id_] for id_ in texts}
        made = [BfclDialogue(entry, executor, native_tools=native_tools) for entry in entries.values()]
        policy = Script({(id_, 0): script for id_, script in texts.items()})
        seeds = [derive(0, "dialogue", id_, 0) for id_ in texts]
        dialogues = run_dialogues(made, policy, GenerationConfig(), max_steps=MAX_STEPS, seeds=seeds)
    finally:
        executor.close()
    return {
        id_: {
            "messages": [asdict(message) for message in dialogue.history],
            "tools": [[tool.name for tool in step.chat.tools] for step in dialogue.steps],
        }
        for id_, dialogue in zip(texts, dialogues, strict=True)
    }


def texts_of(turns: Turns) -> list[str]:
    """The policy's texts; one without a call ends each turn, so a step without calls does too."""
    return ["\n".join(map(block, step)) or "done" for turn in turns for step in [*turn, []]]


def gold(id_: str, *, step_by_step: bool = True) -> Turns:
    """The official answer, a step a call or a turn. Two dialogues have a turn of 34 calls; the loop allows 20 steps."""
    turns = []
    for calls in multi_turn_gold.gold_calls(id_.rsplit("_", 1)[0])[id_]:
        size = -(-len(calls) // 20) if step_by_step else len(calls)
        turns.append([list(calls[start : start + size]) for start in range(0, len(calls), size or 1)])
    return turns


def write_raw(out: Path, report: EvaluationReport) -> None:
    """Result files as a handler of bfcl-eval's own writes them: every call as it was sampled."""
    for category in {row["category"] for row in report.rows}:
        rows = [row for row in report.rows if row["category"] == category]
        results = [
            {
                "id": row["id"],
                "result": [
                    ["\n".join(block(ToolCall(**call)) for call in step["calls"]) for step in turn]
                    for turn in row["turns"]
                ],
            }
            for row in rows
        ]
        directory = out / "result" / "Qwen_Qwen3-1.7B-FC" / "multi_turn"
        write_jsonl(directory / f"BFCL_v4_{category}_result.json", results)


def our_errors(report: EvaluationReport) -> dict[str, str]:
    assert not any(checkers.failed(row["error_type"]) for row in report.rows)
    return {row["id"]: row["error_type"] for row in report.rows if not row["valid"]}


def corrupted(id_: str, kind: str) -> Turns:
    """The gold dialogue with something changed, the same at each call."""
    rng, turns = random.Random(f"{id_}:{kind}"), gold(id_)
    if kind in _OF_TURNS:
        return _OF_TURNS[kind](turns, rng)
    places = [(t, s) for t, turn in enumerate(turns) for s in range(len(turn))]
    turn, step = rng.choice(places)
    turns[turn][step] = list(_OF_CALLS[kind](turns[turn][step][0], rng))
    return turns


def _with(call: ToolCall, **arguments: Any) -> ToolCall:
    return ToolCall(call.name, {**call.arguments, **arguments})


def _each(change: Callable[[Any], Any]) -> Callable[[ToolCall, random.Random], list[ToolCall]]:
    """Changes one argument's value, or gives one where there is none."""

    def changed(call: ToolCall, rng: random.Random) -> list[ToolCall]:
        key = rng.choice(sorted(call.arguments)) if call.arguments else "x"
        return [_with(call, **{key: change(call.arguments.get(key, 1))})]

    return changed


def _without_one(call: ToolCall, rng: random.Random) -> list[ToolCall]:
    left = dict(call.arguments)
    if left:
        del left[rng.choice(sorted(left))]
    return [ToolCall(call.name, left)]


def _renamed_key(key: str) -> Callable[[ToolCall, random.Random], list[ToolCall]]:
    def changed(call: ToolCall, rng: random.Random) -> list[ToolCall]:
        old = rng.choice(sorted(call.arguments)) if call.arguments else None
        return [ToolCall(call.name, {key if k == old else k: v for k, v in call.arguments.items()} or {key: 1})]

    return changed


def _named(*names: str) -> Callable[[ToolCall, random.Random], list[ToolCall]]:
    return lambda call, rng: [ToolCall(rng.choice(names), call.arguments)]


_NAMES = ("ls", "pwd", "cd", "mkdir", "mv", "startEngine", "lockDoors", "get_stock_info", "logout_user", "add", "mean")
_OF_CALLS: dict[str, Callable[[ToolCall, random.Random], Iterable[ToolCall]]] = {
    "call left out": lambda call, rng: [],
    "call made twice": lambda call, rng: [call, call],
    "call made five times": lambda call, rng: [call] * 5,
    "further call before": lambda call, rng: [ToolCall(rng.choice(_NAMES), {}), call],
    "further call behind": lambda call, rng: [call, ToolCall(rng.choice(_NAMES), {})],
    "directory made": lambda call, rng: [call, ToolCall("mkdir", {"dir_name": "new"})],
    "unknown function": _named("frobnicate", "List_Files", "refused_call"),
    "other function": _named(*_NAMES),
    "harmless builtin": _named("len", "repr", "sorted", "dict"),
    "function that is not allowed": _named("kill", "exit", "quit", "remove", "unlink", "popen", "run"),
    "private function": _named("_load_scenario", "__init__", "__eq__"),
    "class before the name": lambda call, rng: [ToolCall(f"GorillaFileSystem.{call.name}", call.arguments)],
    "name with a dash": lambda call, rng: [ToolCall(f"{call.name}-x", call.arguments)],
    "name in capitals": lambda call, rng: [ToolCall(call.name.upper(), call.arguments)],
    "argument left out": _without_one,
    "further argument": lambda call, rng: [_with(call, extra=1)],
    "argument under another name": _renamed_key("value"),
    "argument under a keyword": _renamed_key("class"),
    "argument under a name with a space": _renamed_key("file name"),
    "argument under no name": _renamed_key(""),
    "other text": _each(lambda value: f"{value}x"),
    "empty text": _each(lambda value: ""),
    "text in capitals": _each(lambda value: str(value).upper()),
    "text with quotes and escapes": _each(lambda value: 'it\'s "so"\\ \n\t\x00 \u2028 é 😀'),
    "text that looks like a call": _each(lambda value: f"{value}; see ls (a) and\tail (x) {{}}"),
    "long text": _each(lambda value: "long " * 2000),
    "other number": _each(lambda value: value + 1 if isinstance(value, (int, float)) else 7),
    "negative number": _each(lambda value: -3.5),
    "number as text": _each(str),
    "large number": _each(lambda value: 10**300),
    "whole number as float": _each(lambda value: float(value) if isinstance(value, int) else 1.0),
    "truth value": _each(lambda value: True),
    "null": _each(lambda value: None),
    "list": _each(lambda value: [value, [value]]),
    "object": _each(lambda value: {"a b": value, "": {}}),
    "empty list": _each(lambda value: []),
}


def _without_a_turn(turns: Turns, rng: random.Random) -> Turns:
    turns[rng.choice([t for t, turn in enumerate(turns) if turn])] = []
    return turns


def _shifted(turns: Turns, rng: random.Random) -> Turns:
    return [*turns[1:], turns[0]]


def _all_in_the_first(turns: Turns, rng: random.Random) -> Turns:
    return [[step for turn in turns for step in turn], *([] for _ in turns[1:])]


def _turned_around(turns: Turns, rng: random.Random) -> Turns:
    return [turn[::-1] for turn in turns]


def _endless(turn: int, length: int) -> Callable[[Turns, random.Random], Turns]:
    def changed(turns: Turns, rng: random.Random) -> Turns:
        turns[turn] = [*turns[turn], *([[ToolCall("pwd", {})]] * (length - len(turns[turn])))]
        return turns

    return changed


def _call_in_every_turn(turns: Turns, rng: random.Random) -> Turns:
    return [turn or [[ToolCall(rng.choice(_NAMES), {})]] for turn in turns]


_OF_TURNS: dict[str, Callable[[Turns, random.Random], Turns]] = {
    "gold, one turn a step": lambda turns, rng: [[[*chain(*turn)]] if turn else [] for turn in turns],
    "no call at all": lambda turns, rng: [[] for _ in turns],
    "turn without calls": _without_a_turn,
    "turns shifted": _shifted,
    "all calls in the first turn": _all_in_the_first,
    "calls turned around": _turned_around,
    "call in every turn": _call_in_every_turn,
    "20 steps in the first turn": _endless(0, 20),
    "21 steps in the first turn": _endless(0, 21),
    "25 steps in the first turn": _endless(0, 25),
    "20 steps in the last turn": _endless(-1, 20),
    "21 steps in the last turn": _endless(-1, 21),
}

KINDS = (*_OF_TURNS, *_OF_CALLS)
REFUSED_KINDS = ("harmless builtin", "name with a dash")
"""Of these we evaluate no call; the official executor does, and fails with another text or not at all."""
