"""Questions and verdicts of the installed bfcl-eval package; `checker_process.py` gives them."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_core.data.bfcl_wheel import data_folder
from rest_core.environments.environment import Verdict
from rest_core.records import ToolCall

_TUPLE = "\0tuple"  # the same in checker_process.py
_PROCESS = Path(__file__).with_name("checker_process.py")


def failed(error_type: str | None) -> bool:
    """Whether the checker itself failed: an exception in it, or its running out of time."""
    return error_type is not None and error_type.startswith("checker_error:")


def version() -> str:
    """The version of bfcl-eval that is installed; its figures are reported with it."""
    return importlib.metadata.version("bfcl-eval")


def questions(categories: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The questions of every category as BFCL gives them to a model: {"id", "question", "function"}.

    Function descriptions carry BFCL's hints about the language; parameters of Java and JavaScript functions are
    strings there, in the language's own notation. Memory categories have their conversations among the questions. Those
    of format_sensitivity have a "prompt" with BFCL's own instructions.
    """
    loaded: dict[str, list[dict[str, Any]]] = _ask({"load": list(categories)})
    return loaded


def check(outputs: Mapping[str, Sequence[tuple[str, Sequence[ToolCall]]]]) -> dict[str, list[Verdict]]:
    """Verdicts on calls, by category, in the order given.

    Calls go to the checker as they are, in every language. No function-calling handler of bfcl-eval 2026.3.23
    converts values either: for Java and JavaScript the questions ask for strings, and a value that is none is wrong.
    """
    request = {
        category: [
            {"id": id_, "calls": [{call.name: _sent(call.arguments)} for call in calls]} for id_, calls in entries
        ]
        for category, entries in outputs.items()
    }
    reply = _ask({"check": request})
    return {category: [_verdict(raw) for raw in verdicts] for category, verdicts in reply.items()}


def _sent(value: Any) -> Any:
    """A value of which JSON keeps the tuples, which are no lists for the checker."""
    if isinstance(value, tuple):
        return {_TUPLE: [_sent(item) for item in value]}
    if isinstance(value, list):
        return [_sent(item) for item in value]
    return {key: _sent(item) for key, item in value.items()} if isinstance(value, dict) else value


def _verdict(raw: dict[str, Any]) -> Verdict:
    if raw["valid"]:
        return Verdict(True)
    return Verdict(False, raw["error_type"], "; ".join(map(str, raw["error"])))


def _ask(request: dict[str, Any]) -> Any:
    data_folder()  # a clear error where bfcl-eval is not installed
    with tempfile.TemporaryDirectory(prefix="bfcl-") as scratch:
        # -P: the script's own folder is no place to import from.
        done = subprocess.run(
            [sys.executable, "-P", str(_PROCESS)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            encoding="utf-8",
            check=False,
            env={**os.environ, "BFCL_PROJECT_ROOT": scratch, "PYTHONUTF8": "1"},
        )
    if done.returncode != 0:
        raise RuntimeError(f"bfcl-eval {version()} failed (exit code {done.returncode}):\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)
