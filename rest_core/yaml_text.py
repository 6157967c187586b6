"""YAML that users write: profiles, `--set`, platform.yaml, prompt templates. What is wrong with it is told in one line.

A text may be hostile, or a mistake that looks like it: it is bounded in size, depth and numbers, and in what its
aliases amount to once each stands for what it names.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from rest_core.errors import UserError, one_line

_MOST_BYTES = 128 << 10  # about a hundred times the longest file of the project
_MOST_VALUES = 50_000
_DEEPEST = 50
_LONGEST_NUMBER = 100  # characters
_SHOWN = 300
_TOO_LONG = f"longer than {_MOST_BYTES >> 10} KiB, which nothing that is written by hand is"
_TOO_DEEP = f"nested too deeply (at most {_DEEPEST} levels)"
_TOO_MANY = f"holds more than {_MOST_VALUES} values once each alias stands for what it names; write fewer"
# What PyYAML fails with on a value that does not have the form of its tag: "!!int ''", 2024-99-99.
_OF_VALUES = (ValueError, LookupError, AttributeError, TypeError, OverflowError)


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: of two the first would be lost without a word."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._made = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._depth += 1
        self._made += 1
        if self._depth > _DEEPEST:
            raise _Unbounded(_TOO_DEEP)
        if self._made > _MOST_VALUES:
            raise _Unbounded(_TOO_MANY)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                name = one_line(key.value, longest=80)
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Unbounded(Exception):
    """What would take too much time or memory."""


def read_yaml(path: Path) -> Any:
    """The value of a YAML (or JSON) file; None for an empty one.

    Raises:
        UserError: as of `read_text` and `parse_yaml`.
    """
    return parse_yaml(read_text(path), where=str(path))


def read_text(path: Path) -> str:
    """The text of a file that a person has written.

    Raises:
        UserError: it cannot be read, is too large, or is not UTF-8; the message begins with the file's name.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(f"{path}: {_TOO_LONG}")
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def parse_yaml(text: str, *, where: str) -> Any:
    """The value of a YAML text; None for an empty one.

    Args:
        text: of one document.
        where: what the messages begin with.

    Raises:
        UserError: it is too large, too deep, or not YAML.
    """
    if len(text) > _MOST_BYTES:
        raise UserError(f"{where}: {_TOO_LONG}")
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _require_bounded(node)
        return loader.construct_document(node)
    except _Unbounded as problem:
        raise UserError(f"{where}: {problem}") from None
    except (yaml.YAMLError, *_OF_VALUES) as error:
        raise UserError(f"{where}: not valid YAML: {_problem(error)}") from None


def _require_bounded(top: yaml.Node) -> None:
    """Raise `_Unbounded` for a node that holds too much with each alias as what it stands for."""
    measured: dict[int, tuple[int, int]] = {}  # by a node: how many values it is, and how many levels
    unfinished: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        if (key := id(node)) in measured:
            return measured[key]
        if key in unfinished:
            raise _Unbounded(f"an alias stands for what it is part of{_line(node)}; write the value out")
        unfinished.add(key)
        inner = [measure(child) for child in _children(node)]
        unfinished.remove(key)
        values, levels = 1 + sum(one for one, _ in inner), 1 + max((deep for _, deep in inner), default=0)
        if levels > _DEEPEST:
            raise _Unbounded(_TOO_DEEP)
        if values > _MOST_VALUES:
            raise _Unbounded(_TOO_MANY)
        measured[key] = values, levels
        return measured[key]

    measure(top)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [one for pair in node.value for one in pair]
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if node.tag.endswith((":int", ":float")) and len(node.value) > _LONGEST_NUMBER:
        raise _Unbounded(f"a number of {len(node.value)} characters{_line(node)}")
    return []


def _line(node: yaml.Node) -> str:
    return f", line {node.start_mark.line + 1}"


def _problem(error: Exception) -> str:
    """What is wrong and where, without PyYAML's excerpt of the text, which may be a secret."""
    if isinstance(error, yaml.MarkedYAMLError):
        said = ", ".join(text for text in (error.context, error.problem) if text)
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        return f"{one_line(said, longest=_SHOWN)}{place}"
    if isinstance(error, (yaml.YAMLError, ValueError)):
        return one_line(error, longest=_SHOWN)
    return "a value has another form than its tag says"
