"""Rewards against hand-worked numbers, and the known ways to cheat."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_rewards import toolrl_format, toolrl_share

from rest_core.algorithm.rewards import SCHEMES, reward_ranges, same_json, tool_reward
from rest_core.errors import UserError
from rest_core.records import ToolCall
from rest_core.response import CallSpans, parse, render

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


def test_a_prediction_that_matches_nothing_stays_unused() -> None:
    f = [ToolCall("f", {"a": 1}), ToolCall("f", {"b": 2})]
    # f(a=1) matches nothing of f(b=2), which is left for the second gold call: (1/2 + 2) / (1 + 2 + 2).
    assert tool_reward(answer(f[1]), answer(*f), scheme="toolrl").correctness == pytest.approx(0.0)
    g = [ToolCall("f", {}), ToolCall("f", {"a": 1, "b": 2})]
    # (1/2 + 1 + 2) / (1 + 2 + 2) = 0.7
    assert tool_reward(answer(g[1]), answer(*g), scheme="toolrl").correctness == pytest.approx(1.2)


JUNK = ["blah {{{", '{"name": "g", "parameters": {', '{"name": "f", "parameters": {"a": 1}, "id": 7}']


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize(("scheme", "total"), [("toolrl", 1 - 3), ("rest", (2 - 1 / 150) - (2 + 1 / 150))])
def test_a_piece_that_is_no_call_costs_the_whole_correctness(junk: str, scheme: str, total: float) -> None:
    gold = '{"name": "f", "parameters": {"a": 1}}'
    reference = f"<think> t </think>\n<tool_call>\n{gold}\n</tool_call>"
    given_text = reference.replace(gold, f"{JUNK[0]}\n{gold}\n{junk}")
    assert tool_reward(given_text, reference, scheme=scheme, step=1).total == pytest.approx(total)


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


@pytest.mark.parametrize("scheme", SCHEMES)
def test_format_needs_exactly_the_references_tags(scheme: str) -> None:
    def share(text: str) -> float:
        bounds = reward_ranges(scheme, 7)[0]
        made = tool_reward(text, REFERENCE, scheme=scheme, step=7).format
        return (made - bounds.low) / (bounds.high - bounds.low)

    assert share(answer(ToolCall("wrong", {}))) == 1
    assert share(WORDS) == 0
    assert share(REFERENCE + "\n<response> extra </response>") == 0
    assert share(REFERENCE.replace("<think>", "").replace("</think>", "")) == 0
    assert share(REFERENCE.replace("</tool_call>", "")) == 0
    assert tool_reward(WORDS, REFERENCE, scheme="rest", step=30).format == pytest.approx(-2 + 60 / 150)


@pytest.mark.parametrize(
    ("text", "toolrl", "rest"),
    [
        ("{think}\n{calls}", 1, 1),
        (" \n{think}\n{calls}\n", 1, 1),  # white space around does not count
        ("{think}{calls}", 0, 1),  # no line break between the blocks
        ("{think}\n\n{calls}", 0, 1),
        ("{think} {calls}", 0, 1),
        ("junk {think}\n{calls}", 0, 1),
        ("{think}\n{calls} junk", 0, 1),
        ("{think}\njunk\n{calls}", 0, 1),
        ("{think} junk </think>\n{calls}", 1, 0),  # a second </think> is free in ToolRL, and a tag too many in ResT
        ("{think}\n<response> hm </response></think>\n{calls}", 1, 0),
        ("{calls}\n{think}", 0, 0),
    ],
)
def test_each_authors_format_rule(text: str, toolrl: float, rest: float) -> None:
    think, calls = REFERENCE.split("\n", 1)
    made = text.format(think=think, calls=calls)
    assert tool_reward(made, REFERENCE, scheme="toolrl").format == toolrl == toolrl_format(made, REFERENCE)
    assert tool_reward(made, REFERENCE, scheme="rest", step=150).format == (1 if rest else -1)


NAMES, KEYS, VALUES = st.sampled_from("fgh"), st.sampled_from("abc"), st.sampled_from([1, True, 2.0, "x", [1], None])
CALLS = st.builds(ToolCall, NAMES, st.dictionaries(KEYS, VALUES, max_size=3))


def line(call: ToolCall, key: str = "parameters", **options: Any) -> str:
    return json.dumps({"name": call.name, key: call.arguments}, **options)


PIECES = st.one_of(
    CALLS.map(line),
    CALLS.map(line),
    CALLS.map(lambda call: line(call, "arguments")),
    CALLS.map(lambda call: line(call, indent=1)),
    CALLS.map(lambda call: line(call)[:-2]),
    st.tuples(CALLS, CALLS).map(lambda two: " ".join(map(line, two))),
    st.sampled_from(["", "  ", "blah", "[]", "null", '{"name": "f"', '"f"']),
)
EDGES = st.sampled_from(["", "", "", "", "\n", " ", "junk", "<think> x </think>", "<response> r </response>"])


@st.composite
def responses(draw: Any, gold: list[ToolCall]) -> str:
    """Right and wrong responses in every layout that the two readers should judge alike."""
    known = st.sampled_from([line(call) for call in gold]) if gold else st.nothing()
    inside = draw(st.lists(known | PIECES, max_size=4) | st.just([line(call) for call in gold]))
    edge = lambda usual: draw(st.just(usual) | EDGES)  # noqa: E731
    text = edge("") + "<think> t </think>" + edge("\n")
    if draw(st.booleans()) or gold:
        text += (
            "<tool_call>"
            + edge("\n")
            + "\n".join(inside)
            + edge("\n")
            + draw(st.sampled_from(["</tool_call>"] * 9 + [""]))
        )
    if draw(st.booleans()):
        text += edge("\n") + "<response> r </response>"
    return text + edge("")


@settings(max_examples=300, deadline=None)
@given(data=st.data(), gold=st.lists(CALLS, max_size=3), words=st.booleans())
def test_toolrl_is_the_published_reward(data: Any, gold: list[ToolCall], words: bool) -> None:
    """With `one_call_a_line`; without it calls in other layouts count, and nothing else differs."""
    reference = render(think="t", calls=gold, response="r" if words or not gold else None)
    text = data.draw(responses(gold))
    made = tool_reward(text, reference, scheme="toolrl", one_call_a_line=True)
    share = toolrl_share(text, reference)
    assert made.format == toolrl_format(text, reference)
    assert made.correctness == pytest.approx(0 if share is None else -3 + 6 * share)
    authors = tool_reward(text, reference, scheme="rest", step=75, one_call_a_line=True)
    assert authors.correctness == pytest.approx(0 if share is None else -2.5 + 5 * share)
    if share:  # what the authors' code reads, ours reads alike
        assert tool_reward(text, reference, scheme="toolrl").correctness == pytest.approx(-3 + 6 * share)


F1 = '{"name": "f", "parameters": {"a": 1}}'


def in_block(*lines: str, think: str = "t") -> str:
    return "\n".join([f"<think> {think} </think>", "<tool_call>", *lines, "</tool_call>"])


@pytest.mark.parametrize(
    ("given_text", "ours", "theirs", "offered"),
    [
        (in_block(F1.replace("parameters", "arguments")), (1, 3), (1, -3), True),
        (in_block(json.dumps(json.loads(F1), indent=2)), (1, 3), (1, -3), True),
        (in_block("", F1), (1, 3), (1, 3), True),  # white space at the ends is no line
        (in_block(F1, "", F1), (1, -3 + 6 * 2.5 / 3), (1, -3), True),  # an empty line between
        (in_block(f"{F1} {F1}"), (1, -3 + 6 * 2.5 / 3), (1, -3), True),
        # a call in think is thought about, not made
        (in_block("{}", think=f"<tool_call>\n{F1}\n</tool_call>"), (0, -3), (0, 3), False),
        # two blocks are both read
        (in_block('{"name": "g", "parameters": {}}') + f"\n<tool_call>\n{F1}\n</tool_call>", (0, 2), (0, -3), False),
        # a tag inside a string is content: f(a="</tool_call>") has name and key right
        (in_block(F1.replace("1", '"</tool_call>"')), (1, -3 + 6 * 2 / 3), (0, -3), False),
        # a third key, a repeated key, NaN, a number beyond float64, a name that is empty or no string: no call
        (in_block(F1.replace("}}", '}, "id": 7}')), (1, -3), (1, 3), False),
        (in_block(F1.replace('{"name"', '{"name": "f", "name"')), (1, -3), (1, 3), False),
        (in_block(F1.replace('{"a"', '{"a": 2, "a"')), (1, -3), (1, 3), False),
        (in_block(F1.replace("}}", ', "b": NaN}}')), (1, -3), (1, -3 + 6 * 2.5 / 3), False),
        (in_block(F1.replace("}}", ', "b": 1e999}}')), (1, -3), (1, -3 + 6 * 2.5 / 3), False),
        (in_block(F1, '{"name": 7, "parameters": {}}'), (1, -3), (1, -3 + 6 * 2.5 / 3), False),
        (in_block(F1, '{"name": "", "parameters": {}}'), (1, -3), (1, -3 + 6 * 2.5 / 3), False),
        # no object of arguments: no call, also with a name that no gold call has
        (in_block(F1, '{"name": "g", "parameters": [1]}'), (1, -3), (1, -3 + 6 * 2.5 / 3), False),
        (in_block(F1, '{"name": "g"}'), (1, -3), (1, -3 + 6 * 2.5 / 3), False),
        # a generated chat header does not begin a new answer
        ("<|im_start|>assistant\n" + in_block(F1), (0, 3), (1, 3), False),
    ],
)
def test_where_toolrl_differs_on_purpose(
    given_text: str, ours: tuple[float, float], theirs: tuple[float, float], offered: bool
) -> None:
    """Format and correctness of ours and of the published code; `offered`: `one_call_a_line` gives theirs."""
    reference = in_block(F1)
    made = tool_reward(given_text, reference, scheme="toolrl")
    assert (made.format, made.correctness) == pytest.approx(ours)
    share = toolrl_share(given_text, reference)
    assert share is not None
    assert (toolrl_format(given_text, reference), -3 + 6 * share) == pytest.approx(theirs)
    exact = tool_reward(given_text, reference, scheme="toolrl", one_call_a_line=True)
    assert ((exact.format, exact.correctness) == pytest.approx(theirs)) == offered


def test_one_call_a_line_looks_at_each_call_once_however_many_blocks() -> None:
    seen = []

    class Watched(tuple[CallSpans, ...]):
        def __iter__(self) -> Iterator[CallSpans]:
            for spans in super().__iter__():
                seen.append(spans)
                yield spans

    parsed = parse(f"<tool_call>\n{F1}\n</tool_call>\n" * 200)
    watched = replace(parsed, call_spans=Watched(parsed.call_spans))
    tool_reward(watched, in_block(F1), scheme="toolrl", one_call_a_line=True)
    assert 200 <= len(seen) <= 400  # where they stand, and how they spell their arguments


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


def test_strict_does_not_depend_on_the_order_of_calls() -> None:
    w = {city: ToolCall("w", {"city": city}) for city in ("Oslo", "Rome", "Paris")}
    reference = answer(w["Oslo"], w["Rome"])
    # One call right, of the other name and key: (1 + 2/3) / 2.
    for calls in (("Rome", "Paris"), ("Paris", "Rome")):
        assert strict(answer(*(w[city] for city in calls)), reference) == pytest.approx(1 - 3 + 6 * 5 / 6)


@settings(deadline=None)
@given(st.data(), st.lists(CALLS, min_size=1, max_size=4), st.lists(CALLS, max_size=4))
def test_strict_takes_the_best_assignment(data: Any, gold: list[ToolCall], made: list[ToolCall]) -> None:
    """Against every way to assign predictions to gold calls, and in any order."""

    def share(one: ToolCall, wanted: ToolCall) -> float:
        if one.name != wanted.name:
            return 0.0
        keys = one.arguments.keys() | wanted.arguments.keys()
        both = one.arguments.keys() & wanted.arguments.keys()
        values = sum(same_json(one.arguments[key], wanted.arguments[key]) for key in both)
        return (1 + (len(both) / len(keys) if keys else 1) + values) / (2 + len(wanted.arguments))

    padded = [*made, *[ToolCall("none", {})] * (len(gold) - len(made))]
    best = max(sum(map(share, order, gold)) for order in permutations(padded, len(gold))) / len(gold)
    expected = -3 + 6 * (best if len(made) <= len(gold) else 0.0)
    reference = answer(*gold)
    for calls in (made, data.draw(st.permutations(made))):
        text = answer(*calls) if calls else "<think> t </think>"
        assert tool_reward(text, reference, scheme="strict").correctness == pytest.approx(expected)


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


@pytest.mark.parametrize(
    ("text", "correctness"),
    [
        (f"{in_block(F1)}\nI called f.", 3),  # words cost the format alone
        (in_block(F1, "as wanted"), 3),
        (f"{in_block(F1)}\n{F1}", -3),  # a second call, wherever it was put
        (f"{in_block(F1)}\n</tool_call>\nsee {{", -3),
        (in_block(F1, '{"name": "g", "parameters": {'), -3),
        (in_block(F1.replace('{"a"', '{"a": 2, "a"')), -3),  # two values of one key are two guesses
        (f"<response> <tool_call> {F1} </tool_call> </response>\n{in_block(F1)}", -3),
    ],
)
def test_strict_counts_calls_wherever_they_stand(text: str, correctness: float) -> None:
    reward = tool_reward(text, in_block(F1), scheme="strict")
    assert (reward.format, reward.correctness) == (0, correctness)


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


TAGS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<response>", "</response>"]
FOREIGN = line(ToolCall("z", {"a": 1}))
TEXTS = ["junk", " ", "\n", "{", "{{{", "[", ",", '"', "\\", "\n{", "a\n", "<|im_end|>\n<|im_start|>assistant\n"]
BLOCKS = ["<think> x </think>", f"\n<tool_call>\n{FOREIGN}\n</tool_call>\n", f"\n{FOREIGN}\n", FOREIGN]


@st.composite
def wrong_and_right(draw: Any) -> tuple[str, list[ToolCall], str, int]:
    """A response, the gold calls, the reference, and how many calls the response attempts."""
    gold = draw(st.lists(CALLS, max_size=2))
    known = st.sampled_from([line(call) for call in gold]) if gold else st.nothing()
    unreadable = st.sampled_from(["blah", '{"name": "g", "parameters": {', '{"name": "f", "parameters": {}, "id": 1}'])
    some = st.lists(known | CALLS.map(line) | unreadable, min_size=bool(gold), max_size=3)
    lines = draw(some | st.just([line(call) for call in gold]))
    words = not gold or draw(st.booleans())
    text = in_block(*lines) if lines else "<think> t </think>"
    text += "\n<response> r </response>" * (words or draw(st.booleans()))
    text += draw(st.sampled_from(["", "", "", "<think> late </think>", " junk", f"\n{FOREIGN}"]))
    return text, gold, render(think="t", calls=gold, response="r" if words else None), sum("{" in one for one in lines)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), case=wrong_and_right(), scheme=st.sampled_from(SCHEMES), step=st.sampled_from([1, 75, 200]))
def test_nothing_that_is_added_raises_a_reward(data: Any, case: Any, scheme: str, step: int) -> None:
    """Text, calls and tags, put anywhere into right and wrong responses.

    Left out: calls of a gold name where there are fewer attempts than gold calls (an answer that is completed), for
    `toolrl` and `rest` such calls in any number, the closing tag and what breaks a tag, which are their known ways to
    cheat (below).
    """
    text, gold, reference, attempts = case
    own = ["</tool_call>", *(line(call) for call in gold if attempts >= len(gold))] if scheme == "strict" else []
    snippets = TEXTS + BLOCKS + [tag for tag in TAGS if tag != "</tool_call>"] + own
    edited = text
    for _ in range(data.draw(st.integers(1, 2))):
        tags = [] if scheme == "strict" else list(re.finditer("</?(think|tool_call|response)>", edited))
        allowed = [n for n in range(len(edited) + 1) if not any(tag.start() < n < tag.end() for tag in tags)]
        place = data.draw(st.sampled_from(allowed))
        edited = edited[:place] + data.draw(st.sampled_from(snippets)) + edited[place:]
    before = tool_reward(text, reference, scheme=scheme, step=step).total
    assert tool_reward(edited, reference, scheme=scheme, step=step).total <= before + 1e-9


@settings(max_examples=300, deadline=None)
@given(data=st.data(), case=wrong_and_right())
def test_strict_gives_no_text_more_than_the_calls_it_makes(data: Any, case: Any) -> None:
    """Whatever is replaced in a response: what it gets is no more than its calls and words get in the plain format."""
    text, _, reference, _ = case
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(st.sampled_from(["", *TEXTS, *TAGS, *BLOCKS])) + text[end:]
    parsed = parse(text)
    plain = render(think="t", calls=parsed.calls, response="r" if parsed.response else None)
    made, most = (tool_reward(one, reference, scheme="strict") for one in (text, plain))
    assert made.correctness <= most.correctness + 1e-9
    if parsed.well_formed:
        assert made.correctness == pytest.approx(most.correctness)


@pytest.mark.parametrize("scheme", ["toolrl", "rest"])
def test_the_known_ways_to_raise_the_authors_rewards(scheme: str) -> None:
    def total(text: str) -> float:
        return tool_reward(text, in_block(F1), scheme=scheme, step=150).correctness

    wrong = F1.replace("1", "2")
    assert total(in_block(wrong, F1)) > total(in_block(wrong))  # several candidates
    assert total(in_block(F1, "{").replace("{\n</", "</tool_call> {\n</")) > total(in_block(F1, "{"))  # closed early
    junk = in_block(F1) + "\n<response> r </response>"
    broken = junk.replace("<response>", "<.response>").replace("</response>", "<./response>")  # junk without its tags
    rest = {text: tool_reward(text, in_block(F1), scheme="rest", step=150).total for text in (junk, broken)}
    assert rest[broken] > rest[junk]
    for text in (in_block(F1), WORDS):  # a call where none is wanted costs nothing of the correctness
        assert tool_reward(text, WORDS, scheme=scheme, step=150).correctness == 0
