"""The file that makes vLLM read the project's own format: `vllm_parser` with what it needs of this project, in one.

vLLM runs in environments of its own, where this project is not installed; so the modules' sources are put together.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from rest_core import __version__

PLUGIN_FILE = "rest_vllm_parser.py"
_MODULES = (
    "records",
    "call_json",
    "response",
    "serving.chat_view",
    "serving.vllm_parser",
)  # each needs only those before


def plugin_source() -> str:
    """The file's text."""
    parts = [
        f'"""vLLM\'s parsers for the format of ResT\'s responses, by rest-pipelines {__version__} (Apache-2.0)."""'
    ]
    parts.append("from __future__ import annotations")
    for name in _MODULES:
        found = importlib.util.find_spec(f"rest_core.{name}")
        assert found is not None and found.origin is not None
        parts.append(_alone(Path(found.origin).read_text(encoding="utf-8")))
    return "\n\n\n".join(parts) + "\n"


def _alone(source: str) -> str:
    """A module's source without its docstring and its imports of this project and of `__future__`."""
    lines = source.splitlines()
    for number, node in enumerate(ast.parse(source).body):
        docstring = number == 0 and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        own = isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in ("rest_core", "__future__")
        if docstring or own:
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    return "\n".join(lines).strip()
