"""A prompt template as a YAML file: its fields and their checks.

docs/evaluation.md shows one. Texts in it are Jinja templates; they run in Jinja's sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, ValidationError, model_validator

from rest_core.config import Section
from rest_core.errors import UserError, nearest, one_line
from rest_core.styles.formats import FORMATS
from rest_core.styles.style import Thoughts
from rest_core.yaml_text import parse_yaml, read_text

_VARIABLES = {"tools", "documents", "notes", "turns"}
_TURN_VARIABLES = {"turn", "tools", "documents", "notes"}


class TurnTemplates(Section):
    """The dialogue's turns as messages of their own; a text that is left out is the turn's own."""

    user: str | None = None
    assistant: str | None = None
    tool: str | None = None
    tool_role: Literal["tool", "user"] = "tool"

    def texts(self) -> Iterator[tuple[str, str]]:
        for role in ("user", "assistant", "tool"):
            if (text := getattr(self, role)) is not None:
                yield role, text


class MessageTemplate(Section):
    """A message of the prompt, or all turns of the dialogue."""

    role: Literal["system", "user", "assistant"] | None = None
    content: str | None = None
    turns: TurnTemplates | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> MessageTemplate:
        if (self.turns is None) == (self.content is None) or (self.role is None) != (self.content is None):
            raise ValueError("give role and content, or turns")
        return self


class TemplateFile(Section):
    """The fields of a file."""

    name: str = Field(min_length=1)
    source: str = ""
    license: str = ""
    notice: str = ""
    messages: tuple[MessageTemplate, ...] = Field(min_length=1)
    format: str = "tagged"
    reading: Literal["own", "published"] = "own"
    thoughts: Thoughts | None = None

    @model_validator(mode="after")
    def _known_format(self) -> TemplateFile:
        if self.format not in FORMATS:
            raise ValueError(f"format {self.format!r}{nearest(self.format, FORMATS)} (known: {', '.join(FORMATS)})")
        return self


def read_template_file(path: Path) -> tuple[TemplateFile, str]:
    """The file's fields and its text.

    Raises:
        UserError: it cannot be read, or a field is wrong; one line with file and field.
    """
    text = read_text(path)
    values = parse_yaml(text, where=str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a prompt template is a mapping of fields, not {type(values).__name__}")
    try:
        return TemplateFile.model_validate(values), text
    except ValidationError as error:
        raise UserError(f"{path}: {_problem(error.errors()[0])}") from None


def compiled(text: str, field: str, where: str, *, of_turn: bool = False) -> tuple[jinja2.Template, set[str]]:
    """A field's Jinja template, and the variables that it reads.

    Raises:
        UserError: it is no template, or reads a variable that there is not.
    """
    try:
        variables = jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
        template = _ENVIRONMENT.from_string(text)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"{where}: field {field}, line {error.lineno} of it: {one_line(error)}") from None
    known = _TURN_VARIABLES if of_turn else _VARIABLES
    if unknown := sorted(variables - known):
        raise UserError(
            f"{where}: field {field}: no variable {unknown[0]!r}{nearest(unknown[0], known)} "
            f"(known: {', '.join(sorted(known))})"
        )
    return template, variables


def translated(text: str) -> str:
    """A field's Jinja template for a chat template: white space as written, filters that are there.

    Chat templates are read with other rules for white space (`trim_blocks`, `lstrip_blocks`): text becomes string
    literals, which none of them touches.

    Raises:
        UserError: it reads `turn.call`, which is written as Python does.
    """
    made = []
    pipe, before = False, ""
    for _, kind, value in _ENVIRONMENT.lexer.tokeniter(text, None):
        if (before, value) == (".", "call"):
            raise UserError("the prompt's template reads `turn.call`, which chat templates cannot write")
        if kind == "data":
            made.append("{{- " + json.dumps(value, ensure_ascii=False) + " -}}")
        elif kind in _DELIMITERS:
            made.append(_DELIMITERS[kind])
        elif kind == "name" and pipe and value in _CHAT_FILTERS:
            made.append(_CHAT_FILTERS[value])
        elif not kind.startswith(("comment", "raw")):
            made.append(value)
        pipe, before = value == "|" or (pipe and kind == "whitespace"), value
    return "".join(made)


def _problem(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    message = str(error["ctx"]["error"]) if error["type"] == "value_error" else error["msg"].lower()
    if error["type"] == "extra_forbidden":
        message = "there is no such field"
    return one_line(f"{f'field {place}: ' if place else ''}{message}", longest=1000)


def _environment() -> ImmutableSandboxedEnvironment:
    made = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    made.filters = {
        **made.filters,
        "json": partial(json.dumps, ensure_ascii=False),
        "json_ascii": json.dumps,
        "json_compact": partial(json.dumps, ensure_ascii=False, separators=(",", ":")),
    }
    return made


_ENVIRONMENT = _environment()
_DELIMITERS = {"block_begin": "{%-", "block_end": "-%}", "variable_begin": "{{-", "variable_end": "-}}"}
_CHAT_FILTERS = {"json": "tojson", "json_ascii": "tojson(ensure_ascii=true)"} | {
    "json_compact": 'tojson(separators=(",", ":"))'
}
