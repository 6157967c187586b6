"""Calls as BFCL's multi-turn executor takes them: Python text, which `bfcl evaluate` passes to `eval`.

So nothing of a call may become code but a name and keys that are plain identifiers. A call that has others is refused:
`refused_call()` stands in its place and fails at execution, as a tool that does not exist.
"""

from __future__ import annotations

import ast
import json
import keyword
import re
from collections.abc import Collection
from typing import Any

from rest_core.call_json import without_surrogates
from rest_core.records import ToolCall

REFUSED = ToolCall("refused_call", {})
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def executor_text(call: ToolCall) -> str:
    """What the executor is given: the text of the harmless call, or of one that fails there as in bfcl-eval's own loop.

    So the policy reads the official error, where a name has a class before it or a key is a keyword.
    """
    if (plain := harmless(call)) is not REFUSED:
        return python_text(plain)
    text = python_text(call)
    try:
        ast.parse(text.lstrip(" \t"), mode="eval")
    except (SyntaxError, ValueError):
        return text
    except (RecursionError, MemoryError):  # nested too deeply for Python to read
        return python_text(REFUSED)
    undefined = _DOTTED.fullmatch(call.name) and all(map(_is_plain, call.arguments)) and "_instance" not in call.name
    return text if undefined else python_text(REFUSED)


def harmless(call: ToolCall, tools: Collection[str] | None = None) -> ToolCall:
    """The call itself, or `REFUSED`; half of a surrogate pair, which is no text, becomes U+FFFD.

    Args:
        tools: the names that may be called, for a text that Python's `eval` gets: any other may be a builtin's.
    """
    if not all(_is_plain(name) for name in (call.name, *call.arguments)) or (
        tools is not None and call.name not in tools
    ):
        return REFUSED
    arguments: dict[str, Any] = without_surrogates(call.arguments)
    return ToolCall(call.name, arguments)


def python_text(call: ToolCall) -> str:
    """`name(key=value,…)`, as `convert_to_function_call` in bfcl-eval's `model_handler/utils.py` writes it."""
    return f"{call.name}({','.join(f'{key}={value!r}' for key, value in call.arguments.items())})"


def block(call: ToolCall) -> str:
    """The call as the handler that reads our result files expects it."""
    line = json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False)
    return f"<tool_call>\n{without_surrogates(line)}\n</tool_call>"


def _is_plain(name: str) -> bool:
    """ASCII only: Python reads other identifiers as their normal form, and 'ｏｐｅｎ' as 'open'."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
