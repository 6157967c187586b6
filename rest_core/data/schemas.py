"""Descriptions of parameters in several dialects, as valid JSON schemas.

A dialect is JSON schema itself, BFCL's and ToolACE's ("type": "dict"), or Python's types as xLAM writes them
("List[int]", "str, optional"). Keywords with a value that JSON schema does
not allow are left out. `$defs` and `definitions` are kept, and so are the references to them: putting them
in place could be endless.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rest_core.data.fields import Unreadable, decoded

DEFINITIONS = ("$defs", "definitions")
_SIMPLE = ("array", "boolean", "integer", "null", "number", "object", "string")
_OPTIONAL = ", optional"
# Python's names of types, of which BFCL's Python questions use some, as JSON schema calls them.
_PYTHON = {"float": "number", "str": "string", "int": "integer", "bool": "boolean"}
_CONTAINERS = {"dict": "object", "list": "array", "tuple": "array", "set": "array"}
_NAMES = {
    **{name: name for name in _SIMPLE},
    **_PYTHON,
    **_CONTAINERS,
    **dict.fromkeys(("text", "char", "date", "datetime", "path"), "string"),
    **dict.fromkeys(("long", "short", "byte"), "integer"),
    **dict.fromkeys(("double", "decimal", "complex"), "number"),
    **dict.fromkeys(("arraylist", "frozenset", "iterable", "sequence"), "array"),
    **dict.fromkeys(("hashmap", "map", "mapping"), "object"),
    **dict.fromkeys(("none", "nonetype"), "null"),
}
_ANY = ("any", "typing.any")
_MAX_TYPE = 200  # characters of a type's name that are read; published ones stay below 100


class Converter:
    """Reads one tool's descriptions.

    Args:
        field: how the user's record calls the parameters, for messages.
        foreign_types: keep names of types that are neither Python's nor JSON schema's. BFCL's Java and JavaScript
            questions have such ("HashMap"): the model is to see them, as it is asked for source text there.
    """

    def __init__(self, field: str, *, foreign_types: bool = False) -> None:
        self._field = field
        self._foreign_types = foreign_types

    def parameters(self, given: Mapping[str, Any], required_beside: Any = None) -> dict[str, Any]:
        """All parameters of a tool: {"type": "object", "properties", "required"}, and definitions where there are any.

        Args:
            given: a schema, or bare properties by name.
            required_beside: names of required parameters that stand beside the schema, as some data has them.

        Raises:
            Unreadable: a property is not described by an object, or `required` is no list of names.
        """
        given = _at_root(given)
        properties = self._decoded(given.get("properties"), "properties")
        is_schema = given.get("type") in ("object", "dict") or (
            isinstance(properties, dict)
            and all(inner is None or isinstance(inner, dict) for inner in properties.values())
        )
        if not is_schema:
            properties = given
        elif not properties:  # [] too, as PHP writes an empty object
            properties = {}
        described = {
            name: self._object(name, self._decoded(inner, name))
            for name, inner in self._object("properties", properties).items()
            if inner is not None
        }
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {name: self.schema(inner) for name, inner in described.items()},
            "required": self._required(given, described, required_beside)
            if is_schema
            else [name for name, inner in described.items() if _is_required(inner)],
        }
        if is_schema:
            schema |= {key: self._member(key, given[key]) for key in DEFINITIONS if isinstance(given.get(key), dict)}
            if isinstance(extra := given.get("additionalProperties"), bool | dict):
                schema["additionalProperties"] = self._member("additionalProperties", extra)
        return schema

    def schema(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A property's schema, at every depth; its depth is bounded by `fields.MAX_DEPTH`."""
        converted: dict[str, Any] = {}
        for key, value in given.items():
            if key == "description" and isinstance(value, str):
                converted[key] = value
            elif key == "type":
                converted.update({"type": value} if value in _SIMPLE else self._type(value))
            elif (member := self._member(key, value)) is not _NOTHING:
                converted[key] = member
        if isinstance(inner := given.get("properties"), dict) and "properties" in converted:
            # "required": true beside a property's type is how older schemas say it.
            flagged = [n for n, i in inner.items() if isinstance(i, dict) and i.get("required") is True]
            if required := _names([*converted.get("required", ()), *flagged]):
                converted["required"] = required
        return converted

    def _object(self, name: str, given: Any) -> Mapping[str, Any]:
        if not isinstance(given, dict):
            raise self._no_schema(name, given)
        return given

    def _required(self, given: Mapping[str, Any], properties: Mapping[str, Any], beside: Any) -> list[str]:
        listed = given.get("required")
        if listed is None:
            listed = beside if isinstance(beside, list) else []
        if isinstance(listed, bool):
            listed = []
        if not isinstance(listed, Sequence) or isinstance(listed, str):
            raise self._no_schema("required", listed)
        flagged = [name for name, inner in properties.items() if inner.get("required") is True]
        return list(dict.fromkeys(str(name) for name in (*listed, *flagged) if name is not None))

    def _decoded(self, value: Any, name: str) -> Any:
        return decoded(value, f"{self._field}.{name}") if isinstance(value, str) else value

    def _member(self, key: str, value: Any) -> Any:
        """The value of a keyword; `_NOTHING` where it cannot have this one."""
        if key in ("default", "const"):
            return value
        if value is None or key in _LEFT_OUT:
            return _NOTHING
        if key in _SCHEMA:
            value = self._decoded(value, key)
            if key == "items" and isinstance(value, list):  # the draft before 2020-12
                value = value[0] if len(value) == 1 else True
            if isinstance(value, dict):
                return self.schema(value)
            return value if isinstance(value, bool) else _NOTHING
        if key in _SCHEMAS:
            found = [self._decoded(inner, key) for inner in value] if isinstance(value, list) else []
            return [self.schema(inner) for inner in found if isinstance(inner, dict)] or _NOTHING
        if key in _BY_NAME:
            value = self._decoded(value, key)
            if not isinstance(value, dict):
                return _NOTHING
            decoded = {name: self._decoded(inner, key) for name, inner in value.items()}
            return {name: self.schema(inner) for name, inner in decoded.items() if isinstance(inner, dict)}
        if key == "required":
            return _names(value) if isinstance(value, list) else _NOTHING
        if (allowed := _VALUES.get(key)) is not None:
            return value if allowed(value) else _NOTHING
        return value

    def _type(self, value: Any) -> dict[str, Any]:
        if isinstance(value, list):
            names = [self._type(name) for name in value if isinstance(name, str)]
            types = _names([found["type"] for found in names if isinstance(found.get("type"), str)])
            return {"type": types} if types else {}
        if not isinstance(value, str):
            return {}
        bare = value.removesuffix(_OPTIONAL).strip()
        if self._foreign_types:
            if bare == "any":
                return {}
            return {"type": _PYTHON.get(bare) or _CONTAINERS.get(bare.partition("[")[0].lower(), bare)}
        return _python_type(bare)

    def _no_schema(self, name: str, found: Any) -> Unreadable:
        return Unreadable("parameters are no JSON schema", f"{self._field}.{name}", type(found).__name__)


def is_optional(type_name: Any) -> bool:
    """Whether a type as Python writes it says that the parameter may be left out."""
    if not isinstance(type_name, str):
        return False
    bare = type_name.strip()
    if bare.endswith(_OPTIONAL):
        return True
    container, arguments = _type_parts(bare)
    return container == "optional" or (container in ("union", "|") and any(a.lower() == "none" for a in arguments))


def _is_required(given: Mapping[str, Any]) -> bool:
    """Whether a property is required, by its own description."""
    flag = given.get("required")
    if isinstance(flag, bool):
        return flag
    return "default" not in given and not is_optional(given.get("type"))


def _at_root(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters where they are a reference to a definition of their own: the definition, others kept."""
    seen = set()
    root = given
    while isinstance(reference := root.get("$ref"), str) and reference not in seen and "properties" not in root:
        seen.add(reference)
        start, _, name = reference.removeprefix("#/").partition("/")
        definitions = given.get(start) if start in DEFINITIONS else None
        target = definitions.get(name) if isinstance(definitions, dict) else None
        if not isinstance(target, dict):
            break
        root = target
    if root is given:
        return given
    return {**root, **{key: given[key] for key in DEFINITIONS if key in given}}


def _python_type(name: str) -> dict[str, Any]:
    """A type as Python spells it ("List[int]", "Optional[str]", "int | None"), as a JSON schema.

    A type without JSON schema ("Callable[[int], int]") stands in "format", which may be any text.
    """
    container, arguments = _type_parts(name)
    if container in _ANY or not container:
        return {}
    if container in ("optional", "union", "|"):
        return _any_of([_python_type(inner) for inner in arguments if inner.lower() not in ("none", "null")])
    found = _NAMES.get(container)
    if found is None:
        return {"format": name}
    inner = [_python_type(argument) for argument in arguments if argument != "..."]
    if found == "array" and inner:
        items = inner[0] if all(one == inner[0] for one in inner) else _any_of(inner)
        return {"type": "array", "items": items} if items else {"type": "array"}
    if found == "object" and len(inner) == 2 and inner[1]:
        return {"type": "object", "additionalProperties": inner[1]}
    return {"type": found}


def _any_of(options: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not options or {} in options:
        return {}
    if all(option.keys() == {"type"} for option in options):
        types = _names([option["type"] for option in options])
        if set(types) == {"integer", "number"}:
            types = ["number"]  # which every integer is
        return {"type": types[0] if len(types) == 1 else types}
    return options[0] if len(options) == 1 else {"anyOf": list(options)}


def _type_parts(name: str) -> tuple[str, list[str]]:
    """ "Dict[str, int]" as ("dict", ["str", "int"]), "int | None" as ("|", ["int", "None"])."""
    name = name[:_MAX_TYPE].strip()
    if len(alternatives := _cut(name, "|")) > 1:
        return "|", alternatives
    container, bracket, rest = name.partition("[")
    container = container.strip().lower().removeprefix("typing.")
    if not bracket:
        return container, []
    return (container, _cut(rest[:-1], ",")) if rest.endswith("]") else (name.lower(), [])


def _cut(text: str, mark: str) -> list[str]:
    """`text` cut at the marks outside brackets."""
    pieces, depth, start = [], 0, 0
    for place, character in enumerate(text):
        depth += (character == "[") - (character == "]")
        if character == mark and depth == 0:
            pieces.append(text[start:place])
            start = place + 1
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def _names(values: Sequence[Any]) -> list[str]:
    return list(dict.fromkeys(value for value in values if isinstance(value, str)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_names_by_name(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(names, list) and len(_names(names)) == len(names) for names in value.values()
    )


_NOTHING = object()
# About how a schema is stored, or repeating "required": nothing about a value.
_LEFT_OUT = frozenset(
    {"$schema", "$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$vocabulary", "$recursiveRef", "$recursiveAnchor"}
    | {"dependencies"}
)
_SCHEMA = frozenset(
    {"items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames", "contentSchema"}
    | {"unevaluatedItems", "unevaluatedProperties"}
)
_SCHEMAS = frozenset({"anyOf", "oneOf", "allOf", "prefixItems"})
_BY_NAME = frozenset({"properties", "patternProperties", "dependentSchemas", *DEFINITIONS})
_VALUES: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("title", "description", "format", "pattern", "$ref", "$comment", "contentEncoding", "contentMediaType"),
        lambda value: isinstance(value, str),
    ),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    "multipleOf": lambda value: _is_number(value) and value > 0,
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minContains", "maxContains"), _is_count),
    **dict.fromkeys(("minProperties", "maxProperties"), _is_count),
    **dict.fromkeys(("uniqueItems", "deprecated", "readOnly", "writeOnly"), lambda value: isinstance(value, bool)),
    **dict.fromkeys(("enum", "examples"), lambda value: isinstance(value, list)),
    "dependentRequired": _is_names_by_name,
}
