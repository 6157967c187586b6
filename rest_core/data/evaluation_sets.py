"""The evaluation sets' files and questions, for the check that no training sample repeats one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rest_core import storage
from rest_core.config import ApiBankConfig
from rest_core.data import api_bank as api_bank_files
from rest_core.data import bfcl_wheel, published
from rest_core.data.prompts import user_turns

# The sentence that ends every API-Bank prompt; it is no part of the question.
_API_BANK_REQUEST = "Based on our conversation above, please only make one tool call to solve my need."


def api_bank_folder(api_bank: ApiBankConfig) -> tuple[Path | None, str | None]:
    """The folder of API-Bank's files, downloaded where that is needed; or None, and why there is none.

    Raises:
        UserError: a location was given, and nothing can be read there.
    """
    if not api_bank.enabled:
        return None, "switched off (api_bank.enabled=false)"
    if api_bank.location is not None and not api_bank.location.startswith(published.PREFIX):
        return storage.fetch(api_bank.location, storage.cache_folder()), None
    try:
        return published.fetch(api_bank.location or f"{published.PREFIX}api-bank"), None
    except published.Unreachable as error:
        return None, str(error)


def evaluation_questions(api_bank: Path | None = None) -> dict[str, list[str]]:
    """The user's turns of every evaluation item, by set ("bfcl/simple_python", "api-bank/1").

    The turns of an item are one question. A dialogue of several steps is one for each number of its first steps,
    because a training sample may be made of any of them.

    Args:
        api_bank: folder of ToolRL's processed API-Bank files; None leaves API-Bank out.

    Raises:
        UserError: bfcl-eval is not installed, or the folder lacks a level or holds something else.
    """
    sets = _bfcl()
    if api_bank is None:
        return sets
    for level in api_bank_files.LEVELS:
        sets[f"api-bank/{level}"] = [
            " ".join(turn for turn in user_turns(item.prompt) if turn != _API_BANK_REQUEST)
            for item in api_bank_files.read_level(api_bank, level)
        ]
    return sets


def _bfcl() -> dict[str, list[str]]:
    """All categories. Format sensitivity has no questions of its own: it rewords prompts of others."""
    sets = {f"bfcl/{name}": _questions(bfcl_wheel.questions(name)) for name in bfcl_wheel.categories()}
    return sets | {"bfcl/memory_prerequisites": _questions(bfcl_wheel.memory_prerequisites())}


def _questions(entries: Iterable[dict[str, Any]]) -> list[str]:
    """The questions of a file's entries: of each, its first step, its first two and so on."""
    found: list[str] = []
    for entry in entries:
        steps = [
            " ".join(message["content"] for message in step if message["role"] == "user") for step in entry["question"]
        ]
        grown = (" ".join(filter(None, steps[:count])) for count in range(1, len(steps) + 1))
        found += filter(None, dict.fromkeys(grown))  # a step without a user's message says nothing new
    return found
