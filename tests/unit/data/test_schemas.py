from __future__ import annotations

from typing import Any

import pytest

from rest_core.data.schemas import Converter, is_optional


def of_type(name: Any) -> dict[str, Any]:
    return Converter("parameters").schema({"type": name})


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("str", {"type": "string"}),
        ("str, optional", {"type": "string"}),
        ("List[int]", {"type": "array", "items": {"type": "integer"}}),
        ("list[List[float]]", {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}),
        ("Optional[List[str]]", {"type": "array", "items": {"type": "string"}}),
        ("Union[int, float]", {"type": "number"}),
        ("Union[str, int]", {"type": ["string", "integer"]}),
        ("int | None", {"type": "integer"}),
        ("Union[str, List[str]]", {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        ("Union[str, Any]", {}),
        ("Any", {}),
        ("typing.Any", {}),
        ("Dict[str, int]", {"type": "object", "additionalProperties": {"type": "integer"}}),
        ("Dict[str, Any]", {"type": "object"}),
        ("Dict", {"type": "object"}),
        ("Tuple[float, float]", {"type": "array", "items": {"type": "number"}}),
        ("Tuple[int, str]", {"type": "array", "items": {"type": ["integer", "string"]}}),
        ("Tuple[int, ...]", {"type": "array", "items": {"type": "integer"}}),
        ("Set[str]", {"type": "array", "items": {"type": "string"}}),
        ("Callable[[float], float]", {"format": "Callable[[float], float]"}),
        ("List[Color]", {"type": "array", "items": {"format": "Color"}}),
        ("List[int", {"format": "List[int"}),
        ("", {}),
        (["string", "null"], {"type": ["string", "null"]}),
        (["str", 3], {"type": ["string"]}),
        (None, {}),
        (7, {}),
    ],
)
def test_types(name: Any, schema: dict[str, Any]):
    assert of_type(name) == schema


@pytest.mark.parametrize("name", ["str, optional", "Optional[str]", "Union[str, None]", "int | None"])
def test_optional_types(name: str):
    assert is_optional(name)


@pytest.mark.parametrize("name", ["str", "List[Optional[str]]", "Union[int, str]", None, ["string", "null"]])
def test_types_that_are_not_optional(name: Any):
    assert not is_optional(name)


def test_keywords_that_cannot_have_their_value_are_left_out():
    given = {
        "type": "int",
        "minimum": "1",
        "maximum": 5,
        "enum": "one",
        "description": None,
        "default": None,
        "required": True,
        "$schema": "x",
        "unit": "metres",
    }
    assert Converter("p").schema(given) == {"type": "integer", "maximum": 5, "default": None, "unit": "metres"}


def test_every_place_of_a_schema_is_converted():
    given = {
        "type": "dict",
        "properties": {
            "a": {"anyOf": [{"type": "float"}, {"type": "any"}]},
            "b": None,
            "c": {"type": "str", "required": True},
        },
        "items": [{"type": "int"}],
        "$defs": {"X": {"type": "tuple"}},
        "additionalProperties": {"type": "bool"},
    }
    assert Converter("p").schema(given) == {
        "type": "object",
        "properties": {"a": {"anyOf": [{"type": "number"}, {}]}, "c": {"type": "string"}},
        "items": {"type": "integer"},
        "$defs": {"X": {"type": "array"}},
        "additionalProperties": {"type": "boolean"},
        "required": ["c"],
    }


def test_text_of_json_stands_for_its_object_at_every_place():
    given = {"type": "object", "properties": '{"a": {"type": "array", "items": "{\\"type\\": \\"int\\"}"}, "b": "{}"}'}
    assert Converter("p").parameters(given)["properties"] == {
        "a": {"type": "array", "items": {"type": "integer"}},
        "b": {},
    }


def test_required_may_stand_beside_the_parameters():
    given = {"type": "dict", "properties": {"a": {"type": "str"}, "b": {"type": "str"}}}
    assert Converter("p").parameters(given, ["b"])["required"] == ["b"]
    assert Converter("p").parameters({**given, "required": ["a"]}, ["b"])["required"] == ["a"]
