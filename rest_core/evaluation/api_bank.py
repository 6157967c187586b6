"""The benchmark API-Bank, levels 1 to 3.

Three ways to score a response. Two are on the calls that the parser of the policy's style reads (in the project's own
format a block that is not closed holds no call):

`soft` is the rule of the authors' evaluate.py on these calls: right when any call is the wanted one, however many
others there are; and a line of a tool_call block that is a JSON object without both "name" and "parameters" is taken
for the parameters of a call with the right name. Values are compared as Python compares them (1 == 1.0 == True).

`strict`: exactly one call, with the same name and the same parameters as JSON (1, 1.0 and true differ).

`published` is the rule of the authors' generate.py and evaluate.py on the raw text (`rest_core.styles.published`).
They read the last tool_call block only, close one that is left open, and take {"name", "arguments"} for bare
parameters.

The overall figure is the mean over all items, as in the paper ("overall (597)": 399 + 67 + 131 items).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rest_core import response
from rest_core.config import ApiBankConfig
from rest_core.data.api_bank import LEVELS, Item, read_level
from rest_core.data.prompts import listed_tools, lists_tools
from rest_core.evaluation.benchmark import Benchmark, Figures, Question, Row
from rest_core.evaluation.policy import Answer, Chat
from rest_core.evaluation.statistics import Accuracy, Average
from rest_core.evaluation.taxonomy import ExpectedCall
from rest_core.records import ToolCall
from rest_core.styles.published import api_bank_match

RULES = ("soft", "strict", "published")
PARTS = tuple(f"level_{level}" for level in LEVELS)
HEADLINE = tuple(f"overall_{rule}" for rule in RULES)
SCORES = (*HEADLINE, *(f"{part}_{rule}" for rule in RULES for part in PARTS))
"""The names under which accuracies are reported, `api_bank/` before them."""


class ApiBank(Benchmark):
    """API-Bank from the directory of ToolRL's three files."""

    name = "api_bank"
    title = "API-Bank"
    rules = RULES

    def __init__(self, config: ApiBankConfig, directory: Path) -> None:
        super().__init__(config.generation, config.limit_per_level, config.seed)
        self._directory = directory

    def questions(self) -> dict[str, list[Question]]:
        return {
            f"level-{level}": [  # the name decides which questions a limit leaves
                Question(f"level-{level}-{number}", f"level_{level}", item, expected=_expected(item))
                for number, item in enumerate(read_level(self._directory, level))
            ]
            for level in LEVELS
        }

    def chat(self, question: Question) -> Chat:
        system, user = question.entry.prompt
        tools = listed_tools(system.content) if lists_tools(system.content) else ()
        return Chat(tools, history=(user,), prompt=question.entry.prompt)

    def judge(self, questions: Sequence[Question], answers: Sequence[Answer]) -> list[Row]:
        return [_verdict(q.entry, answer) for q, answer in zip(questions, answers, strict=True)]

    def figures(self, rows: Sequence[Row]) -> Figures:
        members = {part: [row for row in rows if row["category"] == part] for part in PARTS}
        scores = {
            f"{part}_{rule}": Accuracy(sum(row[rule] for row in found), len(found))
            for rule in RULES
            for part, found in members.items()
        }
        overall = {
            f"overall_{rule}": Average(
                scores, {f"{part}_{rule}": len(found) / len(rows) for part, found in members.items()}
            )
            for rule in RULES
        }
        return Figures(
            scores,
            overall,
            counts={part: len(found) for part, found in members.items()} | {"overall": len(rows)},
            notes=("published is the rule of the published figures",),
            headline=HEADLINE,
        )


def _verdict(item: Item, answer: Answer) -> Row:
    strict = strict_match(answer.parsed, item.wanted)
    return {
        "category": f"level_{item.level}",
        "published": api_bank_match(answer.text, item.wanted),
        "soft": soft_match(answer.parsed, item.wanted),
        "strict": strict,
        **({"kind": None} if strict else {}),  # right by our rules, whatever the authors' make of it
    }


def _expected(item: Item) -> tuple[ExpectedCall, ...]:
    return (ExpectedCall(item.wanted.name, item.wanted.arguments),)


def soft_match(parsed: response.Response, wanted: ToolCall) -> bool:
    """The authors' rule: any call is the wanted one, or any bare object its parameters."""
    if any(call == wanted for call in parsed.calls):
        return True
    return bool(parsed.rejected) and any(bare == wanted.arguments for bare in _bare_objects(parsed))


def strict_match(parsed: response.Response, wanted: ToolCall) -> bool:
    """Exactly one call, equal in name and parameters as JSON."""
    if len(parsed.calls) != 1 or parsed.calls[0].name != wanted.name:
        return False
    return _canonical(parsed.calls[0].arguments) == _canonical(wanted.arguments)


def _bare_objects(parsed: response.Response) -> list[dict[str, Any]]:
    """JSON objects that stand on a line of a tool_call block and are no {"name", "parameters"}."""
    found = []
    for block in parsed.blocks:
        if block.kind is not response.Kind.TOOL_CALL:
            continue
        for line in parsed.text[block.content.start : block.content.end].splitlines():
            try:
                value = json.loads(line)
            except (ValueError, RecursionError):  # no JSON, or hostile: no parameters either
                continue
            if isinstance(value, dict) and not {"name", "parameters"} <= value.keys():
                found.append(value)
    return found


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
