"""The evaluation sets' files and questions, for the check that no training sample repeats one."""

from __future__ import annotations

from pathlib import Path

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
    """The user's turns of every evaluation item, all together, by set ("bfcl/simple_python", "api-bank/1").

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
    """The single-turn categories: the question files whose entries bring their functions along."""
    return {
        f"bfcl/{category}": [
            " ".join(message["content"] for step in entry["question"] for message in step if message["role"] == "user")
            for entry in entries
        ]
        for category in bfcl_wheel.categories()
        if "function" in (entries := list(bfcl_wheel.questions(category)))[0]
    }
