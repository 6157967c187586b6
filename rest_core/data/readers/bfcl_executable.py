"""BFCL's executable questions, retired from scoring, out of the installed bfcl-eval package.

Question files hold {id, question: [[{role, content}]], function: [BFCL function schemas]}; the answers beside them
{id, ground_truth: ["f(n=20, p=1/6)", …]}. No scored category contains these questions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rest_core.data import bfcl_wheel
from rest_core.data.dialogues import Dialogue, Turn
from rest_core.data.fields import Record, Unreadable, items, mapping, text
from rest_core.data.python_calls import NotCalls, read_calls
from rest_core.data.tools import read_tools
from rest_core.records import ToolCall

CATEGORIES = ("exec_simple", "exec_multiple", "exec_parallel", "exec_parallel_multiple")


def records() -> Iterator[Record]:
    """Questions and answers joined by their ids."""
    for category in CATEGORIES:
        answers = {
            answer["id"]: answer["ground_truth"]
            for answer in bfcl_wheel.questions(category, "unused_datasets/possible_answer")
        }
        for question in bfcl_wheel.questions(category, "unused_datasets/question"):
            name = question["id"]
            yield Record({**question, "ground_truth": answers.get(name)}, f"bfcl-eval: record {name}", name)


def read(record: Record) -> Dialogue:
    """All calls of a question are one answer, in the order of the data."""
    tools = read_tools(record.fields.get("function"), "function")
    turns = [
        _turn(mapping(message, field := f"question[{step}][{place}]"), field)
        for step, messages in enumerate(items(record.fields.get("question"), "question"))
        for place, message in enumerate(items(messages, f"question[{step}]"))
    ]
    calls: list[ToolCall] = []
    fields: list[str] = []
    for place, call in enumerate(items(record.fields.get("ground_truth"), "ground_truth")):
        field = f"ground_truth[{place}]"
        try:
            found = read_calls(f"[{text(call, field)}]", tools)
        except NotCalls as error:
            raise error.unreadable(field) from None
        calls += found
        fields += [field] * len(found)
    if not calls:
        raise Unreadable("no call and no response", "ground_truth")
    turns.append(Turn("assistant", None, "ground_truth", tuple(calls), tuple(fields)))
    return Dialogue(tools, tuple(turns), "question", "function")


def _turn(message: Mapping[str, Any], field: str) -> Turn:
    role = message.get("role", "user")
    if role not in ("system", "user"):
        raise Unreadable("unknown role", f"{field}.role", repr(role)[:60])
    return Turn(role, text(message.get("content"), f"{field}.content"), field)
