"""Tool descriptions of several dialects, read as `Tool`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rest_core.data.fields import Unreadable, decoded, items, mapping
from rest_core.data.schemas import Converter
from rest_core.records import Tool

_PARAMETERS_KEYS = ("parameters", "input_schema", "inputSchema")  # OpenAI's, Anthropic's, MCP's
_KNOWN_LISTS = 1024  # lists of tools that are kept as they were read: the records of a data set repeat them
_known: dict[tuple[str, str], tuple[Tool, ...]] = {}


def same_name(name: str) -> str:
    """A tool's name as it is compared: published data differs in blanks at the ends and between words."""
    return " ".join(name.split())


def read_tool(value: Any, field: str = "tools", *, foreign_types: bool = False) -> Tool:
    """A tool from an OpenAI function ({"type": "function", "function": …}) or a bare {name, description, parameters}.

    `parameters` may be a JSON schema, BFCL's ("type": "dict"), or bare properties as xLAM writes them
    ({name: {"type": "str, optional", "description": …, "default": …}}); the result is always a valid JSON schema.

    Args:
        foreign_types: see `schemas.Converter`; the result may then have types that JSON schema does not know.

    Raises:
        Unreadable: it is none of these.
    """
    tool = outer = mapping(value, field)
    function = decoded(outer.get("function"), f"{field}.function")
    if isinstance(function, dict):
        field, tool = f"{field}.function", function
    name = tool.get("name")
    if not isinstance(name, str) or not name.strip():
        raise Unreadable("tool without a name", f"{field}.name")
    description = tool.get("description") or ""
    if not isinstance(description, str):
        raise Unreadable("field of the wrong type", f"{field}.description", type(description).__name__)
    key = next((key for key in _PARAMETERS_KEYS if tool.get(key) is not None), _PARAMETERS_KEYS[0])
    given = tool.get(key)
    converter = Converter(f"{field}.{key}", foreign_types=foreign_types)
    parameters = converter.parameters(
        {} if given in (None, "", []) else mapping(given, f"{field}.{key}"),
        tool.get("required", outer.get("required")),
    )
    return Tool(same_name(name), description, parameters)


def read_tools(value: Any, field: str = "tools") -> tuple[Tool, ...]:
    """Every tool of a list (or of a JSON array in a string); a list without tools is `Unreadable`.

    Tools that were read before are given again, not copied: they are not to be changed.
    """
    key = (field, repr(value))
    if (known := _known.get(key)) is not None:
        return known
    tools = tuple(read_tool(tool, f"{field}[{index}]") for index, tool in enumerate(items(value, field)))
    if not tools:
        raise Unreadable("tools missing", field)
    if len(_known) == _KNOWN_LISTS:
        _known.clear()
    _known[key] = tools
    return tools


def by_name(tools: Iterable[Tool]) -> dict[str, Tool]:
    return {same_name(tool.name): tool for tool in tools}


def declares(tool: Tool, argument: str) -> bool:
    """Whether a call of the tool may have this argument."""
    return argument in tool.parameters["properties"] or bool(tool.parameters.get("additionalProperties"))
