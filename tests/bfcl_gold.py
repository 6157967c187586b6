"""BFCL's official answers as calls: what a perfect model would write."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from rest_core.data import bfcl_wheel
from rest_core.evaluation.bfcl.categories import Category
from rest_core.records import ToolCall

Schema = dict[str, Any]

UNANSWERABLE = {
    # The Java parser reads the items of an ArrayList<any> as strings; the answer has an integer and booleans.
    "simple_java_36",
    "simple_java_65",
    # The answer lists no alternative at all for a required array, so that no value is one of them.
    "live_simple_106-63-0",
    "live_simple_112-68-0",
    # The answer requires a parameter that the function's description does not have, which the checker refuses.
    "live_multiple_862-181-3",
    "live_multiple_964-207-0",
}
"""Questions to which the official checker accepts no answer (bfcl-eval 2026.3.23)."""


@cache
def gold_calls(category: Category) -> dict[str, list[ToolCall]]:
    """Entry id → calls that answer it, made from the first alternative of every value."""
    if category.scorer == "relevance":
        entries = bfcl_wheel.questions(category.name)
        wanted = "irrelevance" not in category.name
        return {e["id"]: [ToolCall(e["function"][0]["name"], {})] if wanted else [] for e in entries}
    entries = list(bfcl_wheel.questions(category.name))
    answers = list(bfcl_wheel.questions(category.name, "possible_answer"))
    return {
        entry["id"]: [
            _call(name, values, entry, category) for call in answer["ground_truth"] for name, values in call.items()
        ]
        for entry, answer in zip(entries, answers, strict=True)
    }


def _call(name: str, values: dict[str, list[Any]], entry: dict[str, Any], category: Category) -> ToolCall:
    parameters = next(f for f in entry["function"] if f["name"] == name)["parameters"]
    arguments: dict[str, Any] = {}
    for key, alternatives in values.items():
        given = [value for value in alternatives if value != ""]
        if key not in parameters["properties"]:
            continue  # the checker refuses what the description does not know, the answer notwithstanding
        if not given:
            if key in parameters["required"]:
                arguments[key] = ""  # may be left out by the answer, must be there by the description
            continue
        schema = parameters["properties"][key]
        value = _plain(given[0])
        if category.name == "simple_java":
            value = _java(value, schema)
        elif category.name == "simple_javascript":
            value = _javascript(value, schema)
        arguments[key] = value
    return ToolCall(name, arguments)


def _plain(value: Any) -> Any:
    """A value without alternatives: BFCL gives a list of them for every key of an object, but not deeper in."""
    if isinstance(value, dict):
        chosen = {k: [v for v in alternatives if v != ""] for k, alternatives in value.items()}
        return {k: alternatives[0] for k, alternatives in chosen.items() if alternatives}
    if isinstance(value, list):
        return [_plain(item) if isinstance(item, dict) else item for item in value]
    return value


def _java(value: Any, schema: Schema) -> str:
    kind = schema["type"]
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        inner = schema["items"]["type"]
        items = [f'"{v}"' if kind == "ArrayList" and inner == "String" else _java(v, {"type": inner}) for v in value]
        if kind == "ArrayList":
            return (
                f"new ArrayList<{inner}>(Arrays.asList({', '.join(items)}))" if items else f"new ArrayList<{inner}>()"
            )
        return f"new {inner}[]{{{', '.join(items)}}}"
    if isinstance(value, dict):
        puts = " ".join(
            f'put("{k}", {json.dumps(v) if not isinstance(v, str) else chr(34) + v + chr(34)});'
            for k, v in value.items()
        )
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}" if puts else "new HashMap<String, Object>()"
    return f"{value}{ {'long': 'L', 'float': 'f'}.get(kind, '') }".replace(" ", "")


def _javascript(value: Any, schema: Schema) -> str:
    kind = schema["type"]
    if isinstance(value, str):
        return value
    if kind == "Bigint":
        return f"{value}n"
    return json.dumps(value)
