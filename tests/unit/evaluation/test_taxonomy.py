"""One kind of error an answer, from the answer, the expected calls and bfcl-eval's error type."""

import pytest

from rest_core import response
from rest_core.evaluation.policy import Answer, Chat
from rest_core.evaluation.taxonomy import ExpectedCall, Kind, kind_of, official
from rest_core.records import Message, Tool, ToolCall

CHAT = Chat((Tool("open", "", {}), Tool("close", "", {})), (Message("user", "?"),))
ONE = (ExpectedCall("open", {"path": ["a"], "mode": ["r", ""]}, frozenset({"mode"})),)
TWO = (*ONE, ExpectedCall("close", {"path": ["a"]}))


def answer(*calls: ToolCall, text: str | None = None, finished: bool = True, skipped: str | None = None) -> Answer:
    written = response.render(think="t", calls=calls, response=None) if text is None else text
    return Answer(written, 1, 1, finished, skipped)


def kind(given: Answer, expected=ONE, error_type: str | None = None) -> Kind:
    return kind_of(CHAT, given, expected, error_type)


@pytest.mark.parametrize(
    "text, finished, expected",
    [
        ("<response> I cannot. </response>", True, Kind.NO_CALL),
        ("", True, Kind.NO_CALL),
        ("<think> let me", False, Kind.CUT_OFF),
        ('<tool_call>\n{"name": "open", "parameters": {', False, Kind.CUT_OFF),
        ('<tool_call>\n{"name": "open", "parameters": {\n</tool_call>', True, Kind.UNREADABLE),
        ('{"name": "open", "arguments": {"path": "a"}}', True, Kind.UNREADABLE),
        ('[open(path="a")]', True, Kind.UNREADABLE),
        ('<think> open(path="a")? </think>\n<response> no </response>', True, Kind.NO_CALL),
    ],
)
def test_an_answer_without_a_call(text, finished, expected):
    wrong_count = "simple_function_checker:wrong_count"  # the official type says nothing of the reason
    assert kind(answer(text=text, finished=finished), error_type=wrong_count) is expected


@pytest.mark.parametrize(
    "calls, expected, wrong",
    [
        ([ToolCall("open", {"path": "a"})] * 2, ONE, Kind.WRONG_COUNT),
        ([ToolCall("close", {"path": "a"})], ONE, Kind.WRONG_TOOL),
        ([ToolCall("open", {"mode": "r"})], ONE, Kind.MISSING),
        ([ToolCall("open", {"path": "b"})], ONE, Kind.WRONG_VALUE),
        ([ToolCall("open", {"path": "a", "size": 1})], ONE, Kind.EXTRA),
        ([ToolCall("open", {"path": "b"})], (), Kind.UNWANTED),
        ([ToolCall("open", {"path": "b"})], None, Kind.OTHER),
        ([ToolCall("close", {"path": "a"}), ToolCall("open", {"path": "x"})], TWO, Kind.WRONG_VALUE),
        ([ToolCall("close", {"path": "a"}), ToolCall("close", {"path": "a"})], TWO, Kind.WRONG_TOOL),
        ([ToolCall("close", {}), ToolCall("open", {"path": "a"})], TWO, Kind.MISSING),
    ],
)
def test_calls_are_compared_where_no_official_type_says_more(calls, expected, wrong):
    assert kind(answer(*calls), expected) is wrong
    assert kind(answer(*calls), expected, "parallel_function_checker_no_order:cannot_find_match") is wrong


@pytest.mark.parametrize(
    "error_type, expected",
    [
        ("simple_function_checker:wrong_func_name", Kind.WRONG_TOOL),
        ("simple_function_checker:missing_optional", Kind.MISSING),
        ("simple_function_checker:unexpected_param", Kind.EXTRA),
        ("multiple_function_checker:wrong_count", Kind.WRONG_COUNT),
        ("value_error:list/tuple", Kind.WRONG_VALUE),
        ("type_error:nested", Kind.WRONG_VALUE),
        ("irrelevance_error:decoder_success", Kind.UNWANTED),
        ("checker_error:ValueError", Kind.CHECKER),
    ],
)
def test_the_official_type_decides_where_it_names_a_reason(error_type, expected):
    assert kind(answer(ToolCall("open", {"path": "a"})), error_type=error_type) is expected


def test_a_question_that_was_not_put_is_skipped():
    assert kind(answer(text="", finished=False, skipped="too long"), error_type="skipped_prompt") is Kind.SKIPPED


def test_dialogues_have_kinds_of_their_own():
    assert official("multi_turn:instance_state_mismatch") is Kind.WRONG_STATE
    assert official("multi_turn:execution_response_mismatch") is Kind.MISSING_RESULT
    assert official("multi_turn:force_terminated") is Kind.CUT_OFF
    assert official("multi_turn:empty_turn_model_response") is Kind.NO_CALL
    assert official(None) is None
    assert official("dict_checker:unclear") is None
