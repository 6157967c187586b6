"""Tool descriptions of several dialects, read as `Tool`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rest_core.data.fields import Unreadable, items, mapping
from rest_core.records import Tool

# Type names of BFCL (its Python part) and of xLAM, as JSON schema calls them. BFCL's Java and JavaScript types
# ("HashMap", "Long" …) have no such name: the model is asked for source text there, and they stay as they are.
_JSON_TYPES = {"float": "number", "str": "string", "int": "integer", "bool": "boolean"}
_CONTAINERS = {"dict": "object", "list": "array", "tuple": "array", "set": "array"}  # xLAM: "List[int]", "Dict" too
_OPTIONAL = ", optional"


def same_name(name: str) -> str:
    """A tool's name as it is compared: published data differs in blanks at the ends and between words."""
    return " ".join(name.split())


def read_tool(value: Any, field: str = "tools") -> Tool:
    """A tool from an OpenAI function ({"type": "function", "function": …}) or a bare {name, description, parameters}.

    `parameters` may be a JSON schema, BFCL's ("type": "dict"), or bare properties as xLAM writes them
    ({name: {"type": "str, optional", "description": …, "default": …}}); the result is always a JSON schema.

    Raises:
        Unreadable: it is none of these.
    """
    tool = mapping(value, field)
    if isinstance(tool.get("function"), Mapping):
        tool = tool["function"]
    name = tool.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Unreadable("tool without a name", f"{field}.name")
    description = tool.get("description") or ""
    if not isinstance(description, str):
        raise Unreadable("field of the wrong type", f"{field}.description", type(description).__name__)
    parameters = tool.get("parameters")
    schema = object_schema(mapping({} if parameters is None else parameters, f"{field}.parameters"), field)
    return Tool(same_name(name), description, schema)


def read_tools(value: Any, field: str = "tools") -> tuple[Tool, ...]:
    """Every tool of a list (or of a JSON array in a string); a list without tools is `Unreadable`."""
    tools = tuple(read_tool(tool, f"{field}[{index}]") for index, tool in enumerate(items(value, field)))
    if not tools:
        raise Unreadable("tools missing", field)
    return tools


def object_schema(parameters: Mapping[str, Any], field: str) -> dict[str, Any]:
    """`parameters` in any dialect as a JSON schema of type "object".

    Raises:
        Unreadable: a property is not described by an object.
    """
    properties = parameters.get("properties")
    is_schema = parameters.get("type") in ("object", "dict") or (
        isinstance(properties, Mapping) and all(isinstance(inner, Mapping) for inner in properties.values())
    )
    if is_schema:
        required = parameters.get("required") or []
        properties = properties or {}
    else:
        properties = parameters
        required = [name for name, inner in parameters.items() if isinstance(inner, Mapping) and _is_required(inner)]
    if not isinstance(properties, Mapping) or not isinstance(required, Sequence) or isinstance(required, str):
        raise Unreadable("parameters are no JSON schema", f"{field}.parameters")
    converted: dict[str, Any] = {}
    for name, inner in properties.items():
        if not isinstance(inner, Mapping):
            raise Unreadable("parameters are no JSON schema", f"{field}.parameters.{name}", type(inner).__name__)
        converted[name] = _json_schema(inner)
    schema: dict[str, Any] = {"type": "object", "properties": converted, "required": [str(name) for name in required]}
    if is_schema and "additionalProperties" in parameters:
        schema["additionalProperties"] = parameters["additionalProperties"]
    return schema


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    return {same_name(tool.name): tool for tool in tools}


def _is_required(description: Mapping[str, Any]) -> bool:
    return "default" not in description and not str(description.get("type", "")).endswith(_OPTIONAL)


def _json_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A property's schema with JSON schema's names of types, at every depth."""
    converted: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type" and isinstance(value, str):
            if (name := _json_type(value)) is not None:
                converted[key] = name
        elif key == "properties" and isinstance(value, Mapping):
            converted[key] = {k: _json_schema(v) if isinstance(v, Mapping) else v for k, v in value.items()}
        elif key in ("items", "additionalProperties") and isinstance(value, Mapping):
            converted[key] = _json_schema(value)
        else:
            converted[key] = value
    return converted


def _json_type(name: str) -> str | None:
    """JSON schema's name of a type; None for "any", which JSON schema says by leaving the type out."""
    bare = name.removesuffix(_OPTIONAL).strip()
    if bare == "any":
        return None
    container = bare.partition("[")[0].lower()
    return _JSON_TYPES.get(bare) or _CONTAINERS.get(container, bare)
