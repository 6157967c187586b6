from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.data.python_calls import NotCalls, literal, read_calls
from rest_core.records import Tool, ToolCall


def tool(name: str, *parameters: str) -> Tool:
    return Tool(name, "", {"type": "object", "properties": {p: {} for p in parameters}, "required": []})


def test_toolace_call_with_blanks_in_its_name():
    text = '[Market Trends API(trend_type="MARKET_INDEXES", country="us")]'
    expected = ToolCall("Market Trends API", {"trend_type": "MARKET_INDEXES", "country": "us"})
    assert read_calls(text, []) == [expected]


def test_several_calls_and_none_arguments():
    text = "[/madlibs-diceware(nphrase=2), GetCompetitions(), Driver's Record(id=7)]"
    assert [(c.name, c.arguments) for c in read_calls(text, [])] == [
        ("/madlibs-diceware", {"nphrase": 2}),
        ("GetCompetitions", {}),
        ("Driver's Record", {"id": 7}),
    ]


def test_a_known_name_may_hold_brackets():
    known = [tool("Top Movies (Rated)", "n"), tool("Top Movies", "n")]
    assert read_calls("[Top Movies (Rated)(n=1), Top Movies(n=2)]", known) == [
        ToolCall("Top Movies (Rated)", {"n": 1}),
        ToolCall("Top Movies", {"n": 2}),
    ]


def test_commas_brackets_and_quotes_inside_values():
    text = """[f(q="a, b(c) = d]", ids=[1, (2, 3)], opts={"k": [true, None]}, s='it\\'s', from="x")]"""
    assert read_calls(text, [])[0].arguments == {
        "q": "a, b(c) = d]",
        "ids": [1, [2, 3]],
        "opts": {"k": [True, None]},
        "s": "it's",
        "from": "x",
    }


def test_argument_without_a_name_takes_the_parameter_at_its_place():
    assert read_calls("[calculate_mean([1,3,4])]", [tool("calculate_mean", "numbers")]) == [
        ToolCall("calculate_mean", {"numbers": [1, 3, 4]})
    ]
    with pytest.raises(NotCalls, match="has no name"):
        read_calls("[f(1, 2)]", [tool("f", "a")])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1/6", 1 / 6),
        ("500 * 500", 250000),
        ("-3", -3),
        ("2 - -1", 3),
        ("'a'", "a"),
        ('"\\ud83d\\ude00"', "😀"),
        ('"a\\/b"', "a/b"),
        ("true", True),
        ("None", None),
        ("(1, 2)", [1, 2]),
        ("{'a': False}", {"a": False}),
        ("r'\\d'", "\\d"),
    ],
)
def test_literals(text: str, value: object):
    found = literal(text)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    ["", "x", "f(1)", "2 ** 9999999", "'a' * 9999999", "True + 1", "1/0", "1e999", "NaN", "b'x'", "{1: 2}", "{**a}",
     "[" * 5000, "[" * 70 + "]" * 70, "9" * 5000, "__import__('os')", "(lambda: 1)()", "1 if 1 else 2"],
)  # fmt: skip
def test_what_is_no_literal_is_refused(text: str):
    with pytest.raises(NotCalls):
        literal(text)


@pytest.mark.parametrize(
    "text",
    ["", "Hello.", "[]", "[not a call]", "[f(x=1]", "[f(x=1))]", '[f(x="1)]', "[f(x=1)] Then more", "[f(x=y)]",
     "[(x=1)]", "[f(x=1, x=2)]", "[f(x=1)(y=2)]"],
)  # fmt: skip
def test_what_is_no_list_of_calls_is_refused(text: str):
    with pytest.raises(NotCalls):
        read_calls(text, [])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[A-Za-z_][\w-]{0,8}", fullmatch=True), json_values, max_size=4), st.booleans())
def test_what_is_written_is_read_back(arguments: dict[str, object], as_json: bool):
    write = json.dumps if as_json else repr
    text = f"[Some API({', '.join(f'{key}={write(value)}' for key, value in arguments.items())})]"
    assert read_calls(text, []) == [ToolCall("Some API", arguments)]


@given(st.text(alphabet="[](){}=,\"'\\ab1 .", max_size=60))
def test_no_text_does_worse_than_not_calls(text: str):
    with contextlib.suppress(NotCalls):
        read_calls(f"[{text}]", [tool("ab", "a")])


def test_time_grows_with_the_length_only():
    def seconds(n: int) -> float:
        text = f"[f({', '.join(f'a{i}=[1]' for i in range(n))})]"
        start = time.process_time()
        read_calls(text, [])
        return time.process_time() - start

    assert min(seconds(8000) for _ in range(3)) < 8 * min(seconds(2000) for _ in range(3)) + 0.1
