"""The training prompts: tokenised once, their references parsed once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rest_core.chat import encode_sample
from rest_core.errors import UserError
from rest_core.records import Sample, Tool
from rest_core.response import TAGGED, Response, parse
from rest_core.styles.style import Style


@dataclass(frozen=True)
class Task:
    """One training prompt as ids, with its parsed reference; `sample` is what reward functions are shown."""

    id: str
    prompt_ids: list[int]
    reference: Response
    sample: Sample | None = None

    @property
    def tools(self) -> tuple[Tool, ...]:
        return () if self.sample is None else self.sample.tools


def make_tasks(tokenizer: Any, samples: Iterable[Sample], style: Style | None = None) -> list[Task]:
    """The tasks of a dataset's samples.

    Args:
        style: in which the dataset was prepared; None = its prompts and references are in the project's own format.

    Raises:
        UserError: a sample cannot be encoded, see `encode_sample`, or its reference is not in the format of the model
            family whose style this is.
    """
    return [_task(tokenizer, sample, style) for sample in samples]


def prompt_lengths(tasks: Iterable[Task]) -> list[int]:
    """Tokens of each prompt."""
    return [len(task.prompt_ids) for task in tasks]


def _task(tokenizer: Any, sample: Sample, style: Style | None) -> Task:
    prompt, _ = encode_sample(tokenizer, sample, style)
    if style is None:
        return Task(sample.id, prompt, parse(sample.reference), sample)
    reference = style.parse(sample.reference, sample.tools)
    if reference.dialect is not TAGGED and not reference.well_formed:
        raise UserError(
            f"sample {sample.id}: its reference is not in the style {style.name} ({reference.problems[0]}); prepare "
            "the data with the same model.prompt_style and model.tool_parser"
        )
    return Task(sample.id, prompt, reference, sample)
