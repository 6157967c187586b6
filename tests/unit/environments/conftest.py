"""A policy that answers by a script, and the environment of docs/examples."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from rest_core.evaluation.policy import Answer

TOP = Path(__file__).resolve().parents[3]


class ScriptedPolicy:
    """A `Policy` whose answer to a chat is a function of it; `waves` has the chats of each call."""

    name, condition, template, native_tools, keeps_prompts = "script", "scripted", "", False, True

    def __init__(self, script: Callable) -> None:
        self.script, self.waves = script, []

    def respond(self, chats, config, on_progress=None):
        self.waves.append(list(chats))
        answers = []
        for number, chat in enumerate(chats, start=1):
            said = self.script(chat)
            length = sum(len(message.content) for message in chat.history)
            if length > config.max_prompt_tokens:
                answers.append(Answer("", length, 0, finished=False, skipped=f"prompt of {length} tokens"))
            else:
                answers.append(Answer(said, length, len(said), finished=True))
            if on_progress is not None:
                on_progress(number, len(chats))
        return answers


@pytest.fixture
def scripted() -> Callable[[Callable], ScriptedPolicy]:
    return ScriptedPolicy


@pytest.fixture(scope="session")
def warehouse() -> ModuleType:
    """docs/examples/warehouse.py."""
    spec = importlib.util.spec_from_file_location("warehouse", TOP / "docs" / "examples" / "warehouse.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
