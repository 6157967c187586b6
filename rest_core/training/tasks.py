"""The training prompts: tokenised once, their references parsed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rest_core.chat import encode_sample
from rest_core.records import Sample
from rest_core.response import Response, parse


@dataclass(frozen=True)
class Task:
    """One training prompt as ids, with its parsed reference; `sample` is what reward functions are shown."""

    id: str
    prompt_ids: list[int]
    reference: Response
    sample: Sample | None = None


def make_tasks(tokenizer: Any, samples: Iterable[Sample]) -> list[Task]:
    """The tasks of a dataset's samples.

    Raises:
        UserError: a sample cannot be encoded, see `encode_sample`.
    """
    return [Task(s.id, encode_sample(tokenizer, s)[0], parse(s.reference), s) for s in samples]
