"""The official data and checkers, driven as the evaluation drives them."""

import importlib.util
import sys
import time

import pytest
from bfcl_gold import UNANSWERABLE, gold_calls
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rest_core import response
from rest_core.data import bfcl_wheel
from rest_core.errors import UserError
from rest_core.evaluation.bfcl import checkers
from rest_core.evaluation.bfcl.categories import CATEGORIES
from rest_core.records import ToolCall

pytestmark = pytest.mark.skipif(importlib.util.find_spec("bfcl_eval") is None, reason="bfcl-eval is not installed")


def test_every_official_answer_is_right_in_our_format():
    outputs = {}
    for category in (c for c in CATEGORIES.values() if c.group in ("non_live", "live")):
        gold = gold_calls(category)
        texts = {
            id_: response.render(think="t", calls=calls, response=None if calls else "no")
            for id_, calls in gold.items()
        }
        parsed = {id_: response.parse(text) for id_, text in texts.items()}
        assert all(list(parsed[id_].calls) == calls and parsed[id_].well_formed for id_, calls in gold.items())
        outputs[category.name] = [(id_, parsed[id_].calls) for id_ in gold]
    verdicts = checkers.check(outputs)
    wrong = {
        id_
        for name in outputs
        for (id_, _), verdict in zip(outputs[name], verdicts[name], strict=True)
        if not verdict.valid
    }
    assert wrong == UNANSWERABLE
    assert sum(map(len, outputs.values())) == 3641


def test_questions_are_put_as_bfcl_puts_them():
    loaded = checkers.questions(["simple_python", "simple_java", "simple_javascript", "live_irrelevance"])
    assert [len(entries) for entries in loaded.values()] == [400, 100, 50, 884]
    python = loaded["simple_python"][0]["function"][0]
    assert python["description"].endswith(" Note that the provided function is in Python 3 syntax.")
    java = loaded["simple_java"][0]["function"][0]
    assert java["description"].endswith(" Note that the provided function is in Java 8 SDK syntax.")
    for name in ("simple_java", "simple_javascript"):
        properties = [p for e in loaded[name] for f in e["function"] for p in f["parameters"]["properties"].values()]
        assert {p["type"] for p in properties} == {"string"}
        assert all("string representation" in p["description"] for p in properties)


CASES = [
    ("simple_python", "simple_python_0", [], "simple_function_checker:wrong_count"),
    (
        "simple_python",
        "simple_python_0",
        [ToolCall("calculate_triangle_area", {"base": 10, "height": 5, "unit": "units"})],
        None,
    ),
    ("simple_python", "simple_python_0", [ToolCall("triangle", {})], "simple_function_checker:wrong_func_name"),
    (
        "simple_python",
        "simple_python_0",
        [ToolCall("calculate_triangle_area", {"base": "10", "height": 5})],
        "type_error:simple",
    ),
    (
        "simple_java",
        "simple_java_1",
        [
            ToolCall(
                "SQLCompletionAnalyzer.makeProposalsFromObject", {"object": 5, "useShortName": "true", "params": "x"}
            )
        ],
        "type_error:java",
    ),
    ("irrelevance", "irrelevance_0", [], None),
    ("irrelevance", "irrelevance_0", [ToolCall("anything", {})], "irrelevance_error:decoder_success"),
    ("live_relevance", "live_relevance_0-0-0", [], "relevance_error:decoder_failed"),
    ("live_relevance", "live_relevance_0-0-0", [ToolCall("anything", {})], None),
]


def test_verdicts_and_their_reasons():
    outputs: dict[str, list] = {}
    for category, id_, calls, _ in CASES:
        outputs.setdefault(category, []).append((id_, calls))
    found = {name: iter(verdicts) for name, verdicts in checkers.check(outputs).items()}
    for category, _, calls, error_type in CASES:
        verdict = next(found[category])
        assert (verdict.valid, verdict.error_type) == (error_type is None, error_type), (category, calls)


def gold_with(category: str, id_: str, **arguments: object) -> list[ToolCall]:
    gold = gold_calls(CATEGORIES[category])[id_]
    return [ToolCall(gold[0].name, {**gold[0].arguments, **arguments}), *gold[1:]]


def test_a_checker_that_raises_is_a_wrong_answer_with_the_exception():
    # Python refuses to read an integer of so many digits, and the checker does not expect that.
    calls = gold_with("simple_java", "simple_java_18", pageNo="9" * 5000)
    verdict = checkers.check({"simple_java": [("simple_java_18", calls)]})["simple_java"][0]
    assert (verdict.valid, verdict.error_type) == (False, "checker_error:ValueError")
    assert "4300" in verdict.error


def test_a_checker_that_hangs_is_stopped():
    # The pattern for a JavaScript array of arrays takes 2^n steps on n inner arrays without an end.
    endless = "[" + ",".join(["[1]"] * 60) + "x"
    id_ = "simple_javascript_3"
    entries = [
        (id_, gold_with("simple_javascript", id_, coordinates=endless)),
        (id_, gold_with("simple_javascript", id_)),
    ]
    start = time.perf_counter()
    verdicts = checkers.check({"simple_javascript": entries})["simple_javascript"]
    assert time.perf_counter() - start < 30
    assert verdicts[0].error_type == "checker_error:TimeoutError"
    assert verdicts[1].valid  # and the next entry is checked as ever


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=3, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_arguments_get_a_verdict(data):
    outputs = {}
    for name in ("simple_python", "simple_java", "simple_javascript", "parallel_multiple", "live_multiple"):
        gold = list(gold_calls(CATEGORIES[name]).items())[:60]
        values = data.draw(st.lists(JSON, min_size=5, max_size=5))
        outputs[name] = [
            (
                id_,
                [
                    ToolCall(call.name, {key: values[n % 5] for n, key in enumerate(call.arguments, position)})
                    for call in calls
                ],
            )
            for position, (id_, calls) in enumerate(gold)
        ]
    verdicts = checkers.check(outputs)
    assert {name: len(found) for name, found in verdicts.items()} == {
        name: len(found) for name, found in outputs.items()
    }


def test_neither_this_process_nor_the_installation_is_touched():
    site_packages = bfcl_wheel.data_folder().parent.parent
    before = set(site_packages.iterdir())
    checkers.questions(["live_relevance"])
    assert set(site_packages.iterdir()) == before
    assert "bfcl_eval.constants.model_config" not in sys.modules


def test_without_bfcl_eval_the_error_names_the_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps bfcl-eval"):
        checkers.questions(["simple_python"])
