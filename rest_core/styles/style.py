"""A style: how a question becomes a prompt, how a response is read, and how a reference is written."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from rest_core.config import Section
from rest_core.records import Message, Tool, ToolCall
from rest_core.response import Response
from rest_core.styles.formats import Format

Document = dict[str, Any]  # a tool as its source describes it: {"name", "description", "parameters"}


class Thoughts(Section):
    """Thoughts of references that have none of their own."""

    call: str
    respond: str


class Style(ABC):
    """One way of prompting a model, and of reading its responses.

    Prompts and assistant turns are text in messages: turns of a history are responses in the style's own format.
    """

    name: str
    """For configurations, messages and reports."""
    template: str
    """The text that is published beside figures."""
    format: Format
    keeps_prompts: bool
    """Whether the prompts of ToolRL's data and API-Bank, which ask for the project's own format, are used unchanged."""
    native_tools = False
    """Whether tools go to the chat template as such, not in a text of the style."""
    for_training = True
    variables: Mapping[str, Any] = MappingProxyType({})
    """Of the chat template, the same for every prompt."""
    thoughts: Thoughts | None = None

    @abstractmethod
    def render(
        self, tools: Sequence[Tool], history: Sequence[Message], documents: Sequence[Document] | None = None
    ) -> tuple[Message, ...]:
        """The chat that asks for the next turn of `history`.

        Args:
            tools: those that the model may call, in the order in which it is listed.
            history: the dialogue so far: system messages of the data's own, user turns, assistant turns in the
                style's format, tool results.
            documents: the tools as their source describes them; None = as `tools` says.
        """

    def chat_input(self, prompt: Sequence[Message], tools: Sequence[Tool]) -> tuple[list[dict[str, Any]], Document]:
        """The input of the tokenizer's chat template for a prompt: messages, and further variables."""
        return [{"role": message.role, "content": message.content} for message in prompt], {}

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        """Read a response. Never raises, whatever the text; linear time."""
        return self.format.parse(text, tools)

    def write(self, *, think: str | None, calls: Sequence[ToolCall], response: str | None) -> str:
        """The text of a response; `parse` reads it back."""
        return self.format.write(think=think, calls=calls, response=response)

    def assistant_turn(self, calls: Sequence[ToolCall], response: str | None, think: str | None = None) -> Message:
        """An assistant turn; without a thought of its own it gets the style's, where that has any."""
        if not think and self.thoughts is not None:
            think = self.thoughts.call if calls else self.thoughts.respond
        return Message("assistant", self.write(think=think or None, calls=calls, response=response or None))
