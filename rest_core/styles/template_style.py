"""Styles that a template file describes: `toolrl`, `compact` and others of the package, and files of a user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from rest_core.data.schemas import DEFINITIONS
from rest_core.errors import UserError, one_line
from rest_core.records import Message, Tool, ToolCall
from rest_core.response import Response
from rest_core.styles.formats import FORMATS
from rest_core.styles.published import published_reading
from rest_core.styles.style import Document, Style
from rest_core.styles.template_file import MessageTemplate, TemplateFile, compiled, read_template_file

_KNOWN_TEXTS = 256


class TemplateStyle(Style):
    """The style of a template file.

    Args:
        path: the file.
        built_in: whether the file comes with the project; the name of another gets the file's hash.

    Raises:
        UserError: the file cannot be read, or a field of it is wrong; one line with file and field.
    """

    def __init__(self, path: Path, *, built_in: bool = False) -> None:
        self._where = str(path)
        file, self.template = read_template_file(path)
        self.file = file
        self.name = file.name if built_in else f"{file.name} (sha256 {_digest(self.template)})"
        self.keeps_prompts = built_in
        self.format = FORMATS[file.format]()
        self.thoughts = file.thoughts
        self._published = file.reading == "published"
        self.for_training = not self._published
        self._messages = _compile(file, self._where)
        self._try_out()

    def render(
        self, tools: Sequence[Tool], history: Sequence[Message], documents: Sequence[Document] | None = None
    ) -> tuple[Message, ...]:
        """See `Style.render`.

        Raises:
            UserError: a text of the template fails with this dialogue; one line with file and field.
        """
        notes = tuple([message.content for message in history if message.role == "system"])
        turns = [message for message in history if message.role != "system"]
        given = _Given(tools, documents, notes, [_Turn(self, turns, place) for place in range(len(turns))])
        made: list[Message] = []
        for field, message in zip(_fields(self._messages), self._messages, strict=True):
            try:
                made += message.render(given)
            except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
                raise UserError(f"{self._where}: field {field}: {one_line(error)}") from None
        return tuple(made)

    def parse(self, text: str, tools: Sequence[Tool] = ()) -> Response:
        """See `Style.parse`."""
        read = self.format.parse(text, tools)
        return published_reading(read) if self._published else read

    def _try_out(self) -> None:
        """Render an example, so that errors in a template show now; raises `UserError`."""
        tool = Tool("tool", "Example.", {"type": "object", "properties": {"x": {"type": "string"}}, "required": []})
        call = self.assistant_turn([ToolCall("tool", {"x": "a"})], None)
        self.render((tool,), [Message("system", "s"), Message("user", "u"), call, Message("tool", "r")])


class _Turn:
    """A turn as templates see it; its response is parsed where a template reads a part of it."""

    def __init__(self, style: Style, turns: Sequence[Message], place: int) -> None:
        self._style, self._turns, self._place = style, turns, place
        self.message = turns[place]
        self.role, self.content = self.message.role, self.message.content

    @cached_property
    def _response(self) -> Response:
        return self._style.format.parse(self.content)

    @property
    def think(self) -> str | None:
        return self._response.think

    @property
    def words(self) -> str | None:
        return self._response.response

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [{"name": call.name, "arguments": call.arguments} for call in self._response.calls]

    @property
    def call(self) -> str:
        """Of a tool result: the call that it answers, as Python writes it; empty where there is none."""
        place, results = self._place, -1
        while place >= 0 and self._turns[place].role == "tool":
            place, results = place - 1, results + 1
        calls = self._style.format.parse(self._turns[place].content).calls if place >= 0 else ()
        if self.role != "tool" or results >= len(calls):
            return ""
        call = calls[results]
        return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


class _Given:
    """The variables of one prompt; those that cost time are made where a template reads them."""

    def __init__(
        self,
        tools: Sequence[Tool],
        documents: Sequence[Document] | None,
        notes: tuple[str, ...],
        turns: list[_Turn],
    ) -> None:
        self.sources = (tools, documents)
        self.notes, self.turns = notes, turns

    def variables(self, names: set[str]) -> dict[str, Any]:
        tools, documents = self.sources
        made: dict[str, Any] = {"notes": list(self.notes), "turns": self.turns}
        if "tools" in names:
            made["tools"] = [_described(tool) for tool in tools]
        if "documents" in names:
            made["documents"] = list(documents) if documents is not None else [_document(tool) for tool in tools]
        return made


class _Text:
    """A message with a role and a text of its own. Texts without turns are kept: samples share their tools."""

    def __init__(self, message: MessageTemplate, field: str, where: str) -> None:
        assert message.role is not None and message.content is not None
        self.role = message.role
        self._template, self._names = compiled(message.content, f"{field}.content", where)
        self._known: dict[tuple[int, int, tuple[str, ...]], tuple[Any, str]] = {}

    def render(self, given: _Given) -> list[Message]:
        if "turns" in self._names or not isinstance(given.sources[0], tuple):
            return [Message(self.role, self._text(given))]
        key = (id(given.sources[0]), id(given.sources[1]), given.notes)
        if (known := self._known.get(key)) is None:
            if len(self._known) == _KNOWN_TEXTS:
                self._known.clear()
            # Holds the tools, so that their id stays theirs.
            known = self._known[key] = (given.sources, self._text(given))
        return [Message(self.role, known[1])]

    def _text(self, given: _Given) -> str:
        return self._template.render(given.variables(self._names))


class _Turns:
    """The dialogue's turns, each a message."""

    def __init__(self, message: MessageTemplate, field: str, where: str) -> None:
        assert message.turns is not None
        self._tool_role = message.turns.tool_role
        self._templates = {
            role: compiled(text, f"{field}.turns.{role}", where, of_turn=True) for role, text in message.turns.texts()
        }

    def render(self, given: _Given) -> list[Message]:
        return [self._message(turn, given) for turn in given.turns]

    def _message(self, turn: _Turn, given: _Given) -> Message:
        role = self._tool_role if turn.role == "tool" else turn.role
        if turn.role not in self._templates:
            return turn.message if role == turn.role else Message(role, turn.content)
        template, names = self._templates[turn.role]
        return Message(role, template.render(given.variables(names) | {"turn": turn}))


def _compile(file: TemplateFile, where: str) -> list[_Text | _Turns]:
    return [
        (_Turns if message.turns is not None else _Text)(message, f"messages[{n}]", where)
        for n, message in enumerate(file.messages)
    ]


def _fields(messages: Sequence[_Text | _Turns]) -> list[str]:
    return [f"messages[{n}].{'turns' if isinstance(one, _Turns) else 'content'}" for n, one in enumerate(messages)]


def _described(tool: Tool) -> Document:
    """A tool as templates see it.

    `shown`: its parameters by name, and the definitions that they refer to. `brief`: one object with that, which names
    the optional parameters, the shorter list.
    """
    properties = tool.parameters["properties"]
    shown = {**properties, **{key: tool.parameters[key] for key in DEFINITIONS if key in tool.parameters}}
    required = tool.parameters.get("required", ())
    optional = [name for name in properties if name not in required]
    brief = {"name": tool.name, "description": tool.description, "parameters": shown}
    return {**_document(tool), "shown": shown, "brief": brief | ({"optional": optional} if optional else {})}


def _document(tool: Tool) -> Document:
    return {"name": tool.name, "description": tool.description, "parameters": tool.parameters}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
