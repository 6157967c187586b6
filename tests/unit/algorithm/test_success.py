from __future__ import annotations

import pytest

from rest_core.algorithm.success import succeeds
from rest_core.response import parse


def calls(*lines: str) -> str:
    return "\n".join(["<tool_call>", *lines, "</tool_call>"])


A = '{"name": "a", "parameters": {"x": 1, "y": "z"}}'
B = '{"name": "b", "parameters": {}}'
WORDS = "<response>hello</response>"


@pytest.mark.parametrize(
    ("given", "wanted", "success"),
    [
        (calls(A), calls(A), True),
        (calls(A, B), calls(B, A), True),
        (calls(A, A), calls(A, A), True),
        ("<think>why</think>\n" + calls(A), calls(A), True),
        (calls('{"name": "a", "parameters": {"y": "z", "x": 1}}'), calls(A), True),
        (calls(A), calls(A, B), False),
        (calls(A, B), calls(A), False),
        (calls(A, A), calls(A, B), False),
        (calls(A), calls(A, A), False),
        (calls('{"name": "a", "parameters": {"x": true, "y": "z"}}'), calls(A), False),
        (calls('{"name": "a", "parameters": {"x": 1.0, "y": "z"}}'), calls(A), False),
        (calls('{"name": "c", "parameters": {"x": 1, "y": "z"}}'), calls(A), False),
        (calls(A, "junk"), calls(A), False),
        (calls(A) + " and more", calls(A), False),
        (WORDS, calls(A), False),
        (WORDS, "<response>anything</response>", True),
        (calls(A), WORDS, False),
        ("hello", WORDS, False),
        ("", WORDS, False),
        ("", calls(A), False),
    ],
)
def test_only_the_whole_task_done_exactly_succeeds(given: str, wanted: str, success: bool) -> None:
    assert succeeds(parse(given), parse(wanted)) is success
