"""ToolRL's published reward, written from its rules alone and without the project's parser: an oracle for tests.

Format is one pattern over the whole text, chosen by the tags of the reference. Correctness reads the text between the
first `<tool_call>` and the `</tool_call>` behind it, a line a call, with Python's json module; whatever goes wrong
there costs everything. Both begin behind the last chat header.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any


def toolrl_format(text: str, reference: str) -> float:
    """1 or 0."""
    text = _answer(text)
    blocks = [name for name in ("tool_call", "response") if f"<{name}>" in reference]
    pattern = {
        (): r"<think>.*</think>",
        ("tool_call",): r"<think>.*</think>\n<tool_call>\n.*\n</tool_call>",
        ("response",): r"<think>.*</think>\n<response>.*</response>",
        ("tool_call", "response"): r"<think>.*</think>\n<tool_call>\n.*\n</tool_call>\n<response>.*</response>",
    }[tuple(blocks)]
    once = all(text.count(f"<{name}>") == text.count(f"</{name}>") == 1 for name in blocks)
    return float(once and re.fullmatch(pattern, text, re.DOTALL) is not None)


def toolrl_share(text: str, reference: str) -> float | None:
    """Correctness in [0, 1]; None where the reference makes no call."""
    if "<tool_call>" not in reference:
        return None
    text = _answer(text)
    try:
        if "</tool_call>" not in text:
            return 0.0
        return _share(_calls(text), _calls(reference))
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return 0.0


def _answer(text: str) -> str:
    return text.split("<|im_start|>assistant")[-1].split("<|im_end|>")[0].strip()


def _calls(text: str) -> list[Any]:
    inside = text.split("<tool_call>")[1].split("</tool_call>")[0].strip()
    return [json.loads(line) for line in inside.split("\n")]


def _jaccard(one: list[Any], other: list[Any]) -> float:
    if one == other:
        return 1.0
    shared = (Counter(one) & Counter(other)).total()
    return shared / (len(one) + len(other) - shared)


def _share(given: list[Any], wanted: list[Any]) -> float:
    if given == wanted:
        return 1.0
    total = _jaccard([call["name"] for call in wanted], [call["name"] for call in given])
    used: set[int] = set()
    for gold in wanted:
        parameters = gold["parameters"]
        best, place = 0.0, None
        for n, call in enumerate(given):
            if n in used or call["name"] != gold["name"]:
                continue
            score = (
                _jaccard(list(parameters), list(call["parameters"].keys())) if parameters or call["parameters"] else 1.0
            )
            score += sum(
                1 for key in parameters if key in call["parameters"] and call["parameters"][key] == parameters[key]
            )
            if score > best:
                best, place = score, n
        if place is not None:
            used.add(place)
            total += best
    return total / (1 + len(wanted) + sum(len(gold["parameters"]) for gold in wanted))
