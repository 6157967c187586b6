"""How the authors of ToolRL and ResT read the raw text of a response in their evaluation.

Their rules differ from ours (`rest_core.response`): the last tool_call block counts, one that is not closed is read up
to the end of the text, a block inside of thoughts is read like any other, each line is a call by itself, and keys
beside "name" and "parameters" are ignored. Described after `benchmarks/BFCL/rlla_qwen.py` and `benchmarks/API-Bank` of
https://github.com/qiancheng0/ToolRL.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rest_core.call_json import MAX_DEPTH
from rest_core.data.fields import too_deep
from rest_core.records import ToolCall
from rest_core.response import Response

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_NO_TOOL = "none"


def published_reading(response: Response) -> Response:
    """A response with the calls that the authors' BFCL handler reads, for evaluation: without spans of calls."""
    return replace(response, calls=tuple(bfcl_calls(response.text)), call_spans=())


def bfcl_calls(text: str) -> Iterator[ToolCall]:
    """The calls by the authors' BFCL handler: lines that cannot be read are passed over, and so is the tool 'None'."""
    if _OPEN not in text:
        return
    for value in _lines(text):
        if not isinstance(value, dict) or "parameters" not in value or not isinstance(value.get("name"), str):
            continue
        if value["name"].strip().lower() != _NO_TOOL:
            given = value["parameters"]
            # What is no object, or nested without end, is a call all the same, and a wrong one.
            yield ToolCall(value["name"], given if isinstance(given, dict) and not too_deep(given, MAX_DEPTH) else {})


def api_bank_match(text: str, wanted: ToolCall) -> bool:
    """Whether the authors' evaluation of API-Bank counts a response as right.

    Without a tool_call block the whole text is read. A value without both keys is taken for the parameters of the
    wanted call; a string is read as JSON once more. A value that has no keys ends the reading, as it ends theirs.
    """
    for value in _lines(text.strip()):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return False
        if not isinstance(value, dict | list | str):
            return False
        if not {"name", "parameters"} <= _keys(value):
            if value == wanted.arguments:
                return True
        elif not isinstance(value, dict):
            return False
        elif value["name"] == wanted.name and value["parameters"] == wanted.arguments:
            return True
    return False


def _lines(text: str) -> Iterator[Any]:
    """The JSON values of the lines of the last block, or of the whole text where there is none."""
    for line in text.split(_OPEN)[-1].split(_CLOSE)[0].strip().split("\n"):
        try:
            yield json.loads(line, parse_constant=str, parse_float=_number)
        except (ValueError, RecursionError):
            continue


def _number(text: str) -> float | str:
    """The number; its text where a float64 cannot hold it, as infinity is no JSON value."""
    number = float(text)
    return number if math.isfinite(number) else text


def _keys(value: Any) -> set[str]:
    """Which of the two keys are "in" a value, as Python has it."""
    return {key for key in ("name", "parameters") if key in value}
