"""BFCL's official multi-turn answers as calls: what a perfect model would write."""

from __future__ import annotations

import ast
import json
from functools import cache
from typing import Any

from rest_core.data import bfcl_wheel
from rest_core.evaluation.bfcl import checkers
from rest_core.records import ToolCall

PARTS = ("base", "miss_func", "miss_param", "long_context")
CATEGORIES = tuple(f"multi_turn_{part}" for part in PARTS)


@cache
def entries(category: str) -> dict[str, dict[str, Any]]:
    """Id → question, as the evaluation loads it."""
    return {entry["id"]: entry for entry in checkers.questions([category])[category]}


@cache
def gold_texts(category: str) -> dict[str, list[list[str]]]:
    """Id → the official answer: Python text of the calls of each turn."""
    answers = bfcl_wheel.questions(category, "possible_answer")
    return {id_: answer["ground_truth"] for id_, answer in zip(entries(category), answers, strict=True)}


@cache
def gold_calls(category: str) -> dict[str, list[list[ToolCall]]]:
    """Id → calls of each turn; positional arguments have their names from the function's description."""
    found = {}
    for id_, turns in gold_texts(category).items():
        entry = entries(category)[id_]
        held_back = [function for functions in entry.get("missed_function", {}).values() for function in functions]
        names = {f["name"]: list(f["parameters"]["properties"]) for f in (*entry["function"], *held_back)}
        found[id_] = [[_call(text, names) for text in turn] for turn in turns]
    return found


def _call(text: str, names: dict[str, list[str]]) -> ToolCall:
    node = ast.parse(text.strip(), mode="eval").body
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    arguments = dict(zip(names[node.func.id], map(ast.literal_eval, node.args), strict=False))
    arguments |= {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
    return ToolCall(node.func.id, json.loads(json.dumps(arguments)))
