"""Policies: models under evaluation, each with its own way to make a prompt of a question."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from rest_core.config import GenerationConfig
from rest_core.records import Message, Tool
from rest_core.response import Response, parse

Progress = Callable[[int, int], None]
"""Called with the number of questions that are done so far, and the number of all questions."""


@dataclass(frozen=True)
class Chat:
    """A dialogue whose next turn is the policy's, and the tools that it may call."""

    tools: tuple[Tool, ...]
    history: tuple[Message, ...]
    prompt: tuple[Message, ...] | None = None
    """The same as the benchmark's own prompt, format instructions included, where it brings one."""
    documents: tuple[dict[str, Any], ...] | None = None
    """The benchmark's own descriptions of the tools, where `tools` is a translation of them."""
    seed: int = 0
    """of the response, where responses are sampled"""
    continues: bool = False
    """Whether a later chat may begin with this one and its answer."""


@dataclass(frozen=True)
class Answer:
    """The policy's response to one chat. A chat that was skipped has no text; `skipped` says why."""

    text: str
    prompt_tokens: int
    response_tokens: int  # end-of-sequence token included
    finished: bool  # False where the length limit cut the response off
    skipped: str | None = None
    seconds: float | None = None  # from prompt to response; None where answers are made together and not timed singly
    read: Callable[[str], Response] = field(default=parse, repr=False, compare=False)
    """The parser of the style of the prompt."""

    @cached_property
    def parsed(self) -> Response:
        return self.read(self.text)


class Policy(Protocol):
    """A model under a way of prompting it."""

    @property
    def name(self) -> str:
        """The model's name in reports."""
        ...

    @property
    def condition(self) -> str:
        """How the model is prompted, in a few words: figures under different conditions do not compare."""
        ...

    @property
    def template(self) -> str:
        """The text of that, published beside the figures."""
        ...

    @property
    def native_tools(self) -> bool:
        """Whether tools go to the model as such (`tools=` of its chat template or API), not in a text of ours."""
        ...

    @property
    def keeps_prompts(self) -> bool:
        """Whether a benchmark's own prompt is used unchanged."""
        ...

    def reader(self, chat: Chat) -> Callable[[str], Response]:
        """The parser of responses to this chat; `respond` sets it as `Answer.read`."""
        ...

    def respond(
        self, chats: Sequence[Chat], config: GenerationConfig, on_progress: Progress | None = None
    ) -> list[Answer]:
        """The most likely response to every chat, in their order; at a temperature above 0, one sampled by its seed.

        A prompt longer than the limit is not cut: its answer is empty and says so in `skipped`, and the caller counts
        it as failed.
        """
        ...


@runtime_checkable
class KeepsPrompts(Protocol):
    """A policy that answers the next step of a dialogue faster as long as it keeps what it computed for the last."""

    def together(self, chats: Iterable[Chat], config: GenerationConfig) -> int:
        """How many of the chats, from the first on, it keeps at a time: more dialogues should wait for their turn."""
        ...
