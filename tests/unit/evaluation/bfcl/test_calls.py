"""Calls as Python text: nothing of them may become code."""

import ast
import builtins

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rest_core.evaluation.bfcl.calls import REFUSED, block, executor_text, harmless, python_text
from rest_core.records import ToolCall

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_the_text_is_as_bfcl_writes_it():
    call = ToolCall("mv", {"source": "it's", "n": [1, None, True], "o": {"a": 0.5}})
    assert python_text(call) == "mv(source=\"it's\",n=[1, None, True],o={'a': 0.5})"
    assert python_text(ToolCall("ls", {})) == "ls()"


@pytest.mark.parametrize(
    "call",
    [
        ToolCall("open('x', 'w') or ls", {}),
        ToolCall("os.system", {"command": "true"}),
        ToolCall("ls();import os", {}),
        ToolCall("lambda", {}),
        ToolCall("ｏｐｅｎ", {"file": "x"}),
        ToolCall("", {}),
        ToolCall("ls", {"a=open('x', 'w'), b": 1}),
        ToolCall("ls", {"**": {}}),
        ToolCall("ls", {"class": 1}),
        ToolCall("ls", {"": 1}),
        ToolCall("ls", {"ａ": 1}),
    ],
)
def test_names_and_keys_that_are_no_identifiers_are_refused(call):
    assert harmless(call) is REFUSED


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (ToolCall("ls", {"a": True}), "ls(a=True)"),
        (ToolCall("GorillaFileSystem.ls", {"a": True}), "GorillaFileSystem.ls(a=True)"),
        (ToolCall("ls", {"class": 1}), "ls(class=1)"),
        (ToolCall("ls", {"the file": 1}), "ls(the file=1)"),
        (ToolCall("x_instance._load_scenario", {}), "refused_call()"),
        (ToolCall("mv", {"source='a', destination": "b"}), "refused_call()"),
        (ToolCall("ls() or cd", {}), "refused_call()"),
        (ToolCall("ls() #", {}), "refused_call()"),
        (ToolCall("-" * 5000 + "ls", {}), "refused_call()"),
    ],
)
def test_a_refused_call_goes_to_the_executor_only_where_it_cannot_but_fail(call, text):
    assert executor_text(call) == text


@pytest.mark.parametrize("name", [*dir(builtins), "importlib", "copy", "json", "class_instance", "method"])
def test_only_the_dialogues_functions_get_into_result_files(name):
    assert harmless(ToolCall(name, {"x": 1}), frozenset({"ls"})) is REFUSED


def test_half_of_a_surrogate_pair_is_replaced():
    call = harmless(ToolCall("ls", {"a": {"\ud800": ["\udfff", "😀"]}}))
    assert call == ToolCall("ls", {"a": {"\ufffd": ["\ufffd", "😀"]}})
    block(call).encode()


@given(st.text() | st.sampled_from(["ls", "cd"]), st.dictionaries(st.text() | st.sampled_from("ab"), JSON, max_size=3))
def test_the_text_is_one_call_with_literal_arguments_whatever_the_call(name, arguments):
    node = ast.parse(python_text(harmless(ToolCall(name, arguments))), mode="eval").body
    assert isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
    for keyword in node.keywords:
        ast.literal_eval(keyword.value)
