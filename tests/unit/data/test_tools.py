from __future__ import annotations

import json

import pytest

from rest_core.data.fields import Unreadable
from rest_core.data.tools import read_tool, read_tools

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def test_openai_function_and_bare_description_give_the_same_tool():
    bare = {"name": "weather", "description": "Weather of a city", "parameters": SCHEMA}
    assert read_tool(bare) == read_tool({"type": "function", "function": bare})
    assert read_tool(bare).parameters == SCHEMA


def test_bfcl_types_become_json_schema_at_every_depth():
    parameters = {
        "type": "dict",
        "properties": {
            "point": {"type": "tuple", "items": {"type": "float"}},
            "options": {"type": "dict", "properties": {"deep": {"type": "dict"}, "free": {"type": "any"}}},
            "java": {"type": "HashMap"},
        },
        "required": ["point"],
    }
    tool = {"name": "f", "description": "", "parameters": parameters}
    schema = read_tool(tool).parameters
    assert schema["type"] == "object"
    assert schema["properties"]["point"] == {"type": "array", "items": {"type": "number"}}
    assert schema["properties"]["options"]["properties"] == {"deep": {"type": "object"}, "free": {}}
    assert schema["properties"]["java"] == {"type": "object"}
    assert schema["required"] == ["point"]
    java = read_tool(tool, foreign_types=True).parameters  # as BFCL's Java questions are put
    assert java == {**schema, "properties": {**schema["properties"], "java": {"type": "HashMap"}}}


def test_bare_properties_as_xlam_writes_them():
    # A parameter that is itself called "type", as in xLAM's first record, does not make the properties a schema.
    parameters = {
        "type": {"description": "kind", "type": "str", "default": "game"},
        "ids": {"description": "which", "type": "List[int]"},
        "page": {"description": "page", "type": "int, optional"},
        "span": {"description": "span", "type": "Tuple[float, float]"},
        "fn": {"description": "f", "type": "Callable[[float], float]"},
    }
    schema = read_tool({"name": "f", "parameters": parameters}).parameters
    assert schema["properties"] == {
        "type": {"description": "kind", "type": "string", "default": "game"},
        "ids": {"description": "which", "type": "array", "items": {"type": "integer"}},
        "page": {"description": "page", "type": "integer"},
        "span": {"description": "span", "type": "array", "items": {"type": "number"}},
        "fn": {"description": "f", "format": "Callable[[float], float]"},  # JSON schema has no such type
    }
    assert schema["required"] == ["ids", "span", "fn"]


def test_a_parameter_called_properties_is_a_parameter():
    schema = read_tool({"name": "f", "parameters": {"properties": {"type": "str", "description": "x"}}}).parameters
    assert list(schema["properties"]) == ["properties"]


def test_names_lose_stray_blanks():
    assert read_tool({"name": " Get  Month "}).name == "Get Month"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "tools missing"),
        (None, "field missing"),
        ("[{", "invalid JSON"),
        ([{"description": "no name"}], "tool without a name"),
        ([{"name": "f", "parameters": {"a": "string"}}], "parameters are no JSON schema"),
        (
            [{"name": "f", "parameters": {"type": "object", "properties": [], "required": "a"}}],
            "parameters are no JSON schema",
        ),
        ([{"name": "f", "parameters": [1]}], "field of the wrong type"),
        (["f"], "field of the wrong type"),
        ([3], "field of the wrong type"),
    ],
)
def test_what_is_no_tool_is_refused(value: object, reason: str):
    with pytest.raises(Unreadable) as caught:
        read_tools(value)
    assert caught.value.reason == reason


def test_a_json_string_of_tools_is_read():
    assert read_tools(json.dumps([{"name": "f", "parameters": SCHEMA}]))[0].parameters == SCHEMA


def test_lists_that_were_read_before_are_given_again_and_never_confused():
    tools = [{"name": "f", "parameters": SCHEMA}]
    assert read_tools(tools) is read_tools(json.loads(json.dumps(tools)))
    with pytest.raises(Unreadable):
        read_tools(repr(tools))  # Python's notation is no JSON
    one, true = (read_tools([{"name": "f", "parameters": {"a": {"default": value}}}]) for value in (1, True))
    assert one[0].parameters["properties"]["a"]["default"] is not true[0].parameters["properties"]["a"]["default"]
