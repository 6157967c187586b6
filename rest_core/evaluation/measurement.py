"""What two evaluations must have in common for their figures to compare."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from pydantic import Field

from rest_core.config import Section
from rest_core.evaluation.policy import Chat


class Measurement(Section):
    """How an evaluation was made. Two of them compare where every field is the same."""

    benchmark: str
    items: str
    """SHA-256 of the questions: their ids, tools and texts"""
    condition: str
    """how the model was prompted, in words"""
    template: str
    """SHA-256 of the prompt's template"""
    limits: dict[str, Any]
    """of the generation"""
    checker: str
    """name and version of the rule that judged"""
    rules: tuple[str, ...] = Field(min_length=1)
    """columns of rows.jsonl that hold verdicts"""


def items_hash(ids: Sequence[str], chats: Sequence[Chat]) -> str:
    """SHA-256, in hex, of the questions in any order."""
    lines = sorted(json.dumps([id_, asdict(chat)], sort_keys=True) for id_, chat in zip(ids, chats, strict=True))
    return text_hash("\n".join(lines))


def text_hash(text: str) -> str:
    """SHA-256, in hex; half of a surrogate pair has its own."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
