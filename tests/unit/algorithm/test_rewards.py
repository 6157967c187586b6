"""Rewards against hand-worked numbers, and the known ways to cheat."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.algorithm.rewards import SCHEMES, reward_ranges, same_json, tool_reward
from rest_core.errors import UserError
from rest_core.records import ToolCall
from rest_core.response import render

GOLD = [ToolCall("f", {"a": 1, "b": "x"}), ToolCall("g", {"c": [1, 2]})]
REFERENCE = render(think="t", calls=GOLD, response=None)
WORDS = render(think="t", calls=[], response="no tool fits")


def answer(*calls: ToolCall) -> str:
    return render(think="t", calls=calls, response=None)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_reference_itself_gets_the_maximum(scheme: str) -> None:
    for step in (0, 1, 75, 150):
        assert tool_reward(REFERENCE, REFERENCE, scheme=scheme, step=step).total == pytest.approx(4.0)


def test_toolrl_correctness_by_hand() -> None:
    # G = f(a, b), g(c): the denominator is 1 + 2 + 3 = 6.
    def correctness(*calls: ToolCall) -> float:
        return tool_reward(answer(*calls), REFERENCE, scheme="toolrl").correctness

    # f with one value right: r_name = 1/2, r_keys = 1, r_values = 1 → 2.5 / 6.
    assert correctness(ToolCall("f", {"a": 1, "b": "y"})) == pytest.approx(-3 + 6 * 2.5 / 6)
    # f with one key of two and one foreign: r_keys = 1/3, r_values = 1; g missing: (1/2 + 4/3) / 6.
    assert correctness(ToolCall("f", {"a": 1, "z": 0})) == pytest.approx(-3 + 6 * (0.5 + 4 / 3) / 6)
    # a wrong name: Jaccard 1/3 with g right: (1/3 + 1 + 1) / 6.
    assert correctness(ToolCall("h", {}), GOLD[1]) == pytest.approx(-3 + 6 * (1 / 3 + 2) / 6)
    # no call at all: nothing.
    assert correctness(ToolCall("zzz", {})) == pytest.approx(-3)


def test_each_gold_call_takes_the_best_unused_prediction() -> None:
    gold = [ToolCall("f", {"a": 1}), ToolCall("f", {"a": 2})]
    given_calls = [ToolCall("f", {"a": 2}), ToolCall("f", {"a": 1})]
    reward = tool_reward(answer(*given_calls), answer(*gold), scheme="toolrl")
    assert reward.correctness == pytest.approx(3.0)  # (1 + 2·(1 + 1)) / (1 + 2 + 2) = 1


def test_without_a_gold_call_toolrl_gives_no_correctness() -> None:
    assert tool_reward(WORDS, WORDS, scheme="toolrl").correctness == 0
    assert tool_reward(REFERENCE, WORDS, scheme="rest", step=9).correctness == 0


@pytest.mark.parametrize(
    ("step", "format_range", "correctness_range"),
    [(0, (-2, 2), (-2, 2)), (75, (-1, 1.5), (-2.5, 2.5)), (150, (-1, 1), (-3, 3)), (300, (-1, 1), (-3, 3))],
)
def test_the_schedule_by_hand(
    step: int, format_range: tuple[float, float], correctness_range: tuple[float, float]
) -> None:
    made_format, made_correctness = reward_ranges("rest", step)
    assert (made_format.low, made_format.high) == pytest.approx(format_range)
    assert (made_correctness.low, made_correctness.high) == pytest.approx(correctness_range)


def test_format_needs_exactly_the_references_tags() -> None:
    def share(text: str) -> float:
        return tool_reward(text, REFERENCE, scheme="toolrl").format

    assert share(answer(ToolCall("wrong", {}))) == 1
    assert share(WORDS) == 0
    assert share(REFERENCE + "\n<response> extra </response>") == 0
    assert share(REFERENCE.replace("<think>", "").replace("</think>", "")) == 0
    assert share(REFERENCE.replace("</tool_call>", "")) == 0
    assert tool_reward(WORDS, REFERENCE, scheme="rest", step=30).format == pytest.approx(-2 + 60 / 150)


def strict(text: str, reference: str = REFERENCE) -> float:
    return tool_reward(text, reference, scheme="strict").total


ONE = ToolCall("f", {"a": 1})
ONE_REFERENCE = answer(ONE)


def test_strict_shotgun_never_pays() -> None:
    wrong = strict(answer(ToolCall("f", {"a": 2})), ONE_REFERENCE)
    for count in range(2, 8):
        shots = [ToolCall("f", {"a": n}) for n in range(count)]
        assert strict(answer(*shots), ONE_REFERENCE) < wrong
    # … which in the authors' reward it does:
    two = [ToolCall("f", {"a": 2}), ONE]
    toolrl = {
        n: tool_reward(answer(*calls), ONE_REFERENCE, scheme="toolrl").total for n, calls in enumerate([two[:1], two])
    }
    assert toolrl[1] > toolrl[0]


def test_strict_duplicates_cost() -> None:
    assert strict(answer(ONE, ONE), ONE_REFERENCE) < strict(answer(ToolCall("f", {"a": 2})), ONE_REFERENCE)


def test_strict_calls_where_none_is_wanted_cost_everything() -> None:
    assert strict(WORDS, WORDS) == 4
    assert strict(answer(ONE), WORDS) == -3
    assert strict(render(think="t", calls=[ONE], response="and words"), WORDS) == -3
    assert strict("", WORDS) == -3  # saying nothing is no answer either


@pytest.mark.parametrize(
    "text",
    [
        "junk " + ONE_REFERENCE,
        ONE_REFERENCE + " junk",
        "<think> t </think>" + ONE_REFERENCE,
        "<think></think>" + ONE_REFERENCE,
        ONE_REFERENCE.replace(" t ", " "),
        "<|im_end|>\n<|im_start|>assistant\n" + ONE_REFERENCE,
        "<response> no </response><|im_start|>assistant\n" + ONE_REFERENCE,
    ],
)
def test_strict_junk_and_odd_blocks_lose_the_format(text: str) -> None:
    assert tool_reward(text, ONE_REFERENCE, scheme="strict").format == 0


def test_strict_a_call_inside_think_is_no_call() -> None:
    hidden = "<think> " + ONE_REFERENCE.split("\n", 1)[1] + " </think>\n<response> done </response>"
    assert strict(hidden, ONE_REFERENCE) == -3


def test_strict_types_matter() -> None:
    for gold, cheat in ((1, True), (2, 2.0), (0, False), (1, "1")):
        reference = answer(ToolCall("f", {"a": gold}))
        assert strict(answer(ToolCall("f", {"a": cheat})), reference) == pytest.approx(1 - 3 + 6 * 2 / 3)
        assert strict(reference, reference) == 4
    assert not same_json([{"a": 1}], [{"a": True}])
    assert same_json({"a": [1, None], "b": {}}, {"b": {}, "a": [1, None]})


def test_strict_neither_printing_nor_one_bad_call_loses_everything() -> None:
    pretty = '<think> t </think>\n<tool_call>\n{\n  "name": "f",\n  "parameters": {\n    "a": 1\n  }\n}\n</tool_call>'
    assert strict(pretty, ONE_REFERENCE) == 4
    one_bad = REFERENCE.replace(
        '{"name": "g", "parameters": {"c": [1, 2]}}', '{"name": "g", "parameters": {"c": [1, 2}'
    )
    assert tool_reward(one_bad, REFERENCE, scheme="strict").correctness == pytest.approx(0.0)  # one of two


def test_strict_partial_credit_by_hand() -> None:
    # f: 1 + r_keys 1 + one value of two over 2 + 2; g missing: mean (3/4 + 0) / 2.
    assert tool_reward(
        answer(ToolCall("f", {"a": 1, "b": "y"})), REFERENCE, scheme="strict"
    ).correctness == pytest.approx(-3 + 6 * 0.375)


@given(st.text(max_size=200), st.sampled_from(SCHEMES), st.integers(0, 300))
def test_rewards_stay_in_their_ranges(text: str, scheme: str, step: int) -> None:
    for reference in (REFERENCE, WORDS):
        reward = tool_reward(text, reference, scheme=scheme, step=step)
        format_range, correctness_range = reward_ranges(scheme, step)
        assert format_range.low <= reward.format <= format_range.high
        assert correctness_range.low <= reward.correctness <= correctness_range.high
        assert reward.total == reward.format + reward.correctness


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'strict'"):
        tool_reward("", "", scheme="strikt")
