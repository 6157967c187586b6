"""A dialogue with a person at a terminal, with tools that a Python file defines.

It is an environment like those of benchmarks (`rest_core.environments`): the loop of dialogues runs it.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_core.environments.environment import Stop, Verdict
from rest_core.errors import UserError, one_line
from rest_core.records import Message, Tool, ToolCall
from rest_core.response import Response

_MODULE = "rest_chat_tools"


class TerminalChat:
    """`rest_core.environments.environment.Environment` with a person as the user.

    Args:
        functions: the tools, by name; they are called with what the model wrote.
        ask: gives the person's next words; None ends the dialogue.
        tell: shows a line.
        read: the parser of the policy's responses.
    """

    documents = None

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]],
        ask: Callable[[], str | None],
        tell: Callable[[str], None],
        read: Callable[[str], Response],
    ) -> None:
        self.functions = functions
        self.tools = tuple(described(function) for function in functions.values())
        self._ask, self._tell, self._read = ask, tell, read

    def user_turn(self, said: str) -> tuple[Message, ...] | None:
        """See `Environment.user_turn`."""
        if said:
            read = self._read(said)
            self._tell(one_line(read.response or said))
        words = self._ask()
        return None if words is None else (Message("user", words),)

    def step(self, calls: Sequence[ToolCall]) -> list[str]:
        """See `Environment.step`."""
        return [self._result(call) for call in calls]

    def verdict(self, stop: Stop) -> Verdict:
        """See `Environment.verdict`."""
        return Verdict(stop == "completed")

    def _result(self, call: ToolCall) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())
        function = self.functions.get(call.name)
        if function is None:
            text = f"error: there is no tool {call.name!r}"
        else:
            try:
                found = function(**call.arguments)
                text = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False, default=str)
            except Exception as error:  # the person's own code: the model sees what went wrong
                text = f"error: {type(error).__name__}: {error}"
        self._tell(f"  {one_line(f'{call.name}({arguments}) → {text}', longest=400)}")
        return text


def functions_of(path: Path) -> dict[str, Callable[..., Any]]:
    """The public functions that a Python file defines, by name.

    Raises:
        UserError: it cannot be imported, defines none, or one lacks what describes it to a model.
    """
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: no Python file; give one that defines functions")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_MODULE] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"{path}: cannot be imported: {type(error).__name__}: {one_line(error)}") from None
    found: dict[str, Callable[..., Any]] = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == _MODULE and not name.startswith("_")
    }
    if not found:
        raise UserError(f"{path}: defines no public function; each one is a tool")
    for function in found.values():
        described(function, where=str(path))
    return found


def described(function: Callable[..., Any], where: str = "") -> Tool:
    """A function as a tool, by its type hints and its docstring (Google style).

    Raises:
        UserError: a hint or a description is missing.
    """
    from transformers.utils import get_json_schema

    try:
        schema = get_json_schema(function)["function"]
    except Exception as error:  # transformers has several, with one base that it does not export
        raise UserError(f"{where}: {function.__name__}: {one_line(error)}") from None
    parameters = schema["parameters"]
    properties = {"properties": parameters.get("properties", {}), "required": list(parameters.get("required", ()))}
    return Tool(schema["name"], schema["description"], {"type": "object", **properties})
