"""Readers: one module a format, each with a function that brings a record into the form of a `Dialogue`.

It raises `Unreadable` where the record as a whole cannot be read. To add a format: write the function, and name it in
`READERS`. Containers (JSON lines, JSON array, parquet) are read by `rest_core.data.files`. docs/data.md shows every
format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rest_core.data import dialogues, files
from rest_core.data.dialogues import Dialogue, Verbatim
from rest_core.data.fields import Record, Rejected, Unreadable, shown
from rest_core.data.readers import bfcl_retired, glaive, jsonl, sharegpt, toolrl, trl, xlam
from rest_core.data.taken_apart import dialogue_of
from rest_core.errors import UserError, nearest
from rest_core.records import Sample
from rest_core.styles.style import Style

Use = Literal["sft", "rl"]
AUTO = "auto"


class UnknownFormat(UserError):
    """No record of a file belongs to a format that can be read."""


@dataclass(frozen=True)
class Reader:
    """A format: how its records are recognised and read."""

    read: Callable[[Record], Dialogue | Verbatim]
    keys: frozenset[str] = frozenset()  # fields that a record of this format has
    has: Callable[[Mapping[str, Any]], bool] = lambda fields: True  # more than fields, where other formats have these
    use: tuple[Use, ...] = ("sft", "rl")  # the purpose of the data

    def recognises(self, fields: Mapping[str, Any]) -> bool:
        return self.keys <= fields.keys() and self.has(fields)


# In the order in which they are tried: formats whose fields are a subset of another's come later.
READERS: dict[str, Reader] = {
    "toolrl-rl": Reader(toolrl.read_rl, frozenset({"prompt", "reward_model"}), use=("rl",)),
    "toolrl-sft": Reader(
        toolrl.read_sft, frozenset({"instruction", "input", "output"}), toolrl.has_tools, use=("sft",)
    ),
    "toolace": Reader(sharegpt.read, frozenset({"system", "conversations"}), sharegpt.is_toolace),
    "xlam": Reader(xlam.read, frozenset({"query", "tools", "answers"})),
    "bfcl-retired": Reader(bfcl_retired.read, frozenset({"question", "function", "ground_truth"})),
    "glaive": Reader(glaive.read, has=glaive.has_chat),
    "sharegpt": Reader(sharegpt.read, frozenset({"conversations"})),
    "trl": Reader(trl.read, frozenset({"prompt", "completion"})),
    "jsonl": Reader(jsonl.read, frozenset({"messages"})),
}

# Formats that people have and that hold no tool use, or not enough of it to be read: fields → description.
_OTHERS: dict[frozenset[str], str] = {
    frozenset({"chosen", "rejected"}): "preference data (chosen and rejected)",
    frozenset({"instruction", "output"}): "Alpaca's, which has no tools",
    frozenset({"text"}): "plain text, without turns and tools",
    frozenset({"prompt"}): "prompts without answers",
}


def format_of(fields: Mapping[str, Any]) -> str | None:
    """The format of a record, None where it belongs to none that can be read."""
    return next((name for name, reader in READERS.items() if reader.recognises(fields)), None)


def detect(path: Path) -> str:
    """The format of a file: that of the first record that belongs to one.

    Raises:
        UnknownFormat: no record does.
        UserError: the file cannot be read.
    """
    first: Record | None = None
    unreadable: Rejected | None = None
    for record in files.records(path):
        if isinstance(record, Rejected):
            unreadable = unreadable or record
        elif (name := format_of(record.fields)) is not None:
            return name
        else:
            first = first or record
    if first is None:
        raise UnknownFormat(
            f"{unreadable}; no record can be read: give one record a line, or one JSON array of records"
        )
    raise UnknownFormat(
        f"{first.where}: {_unknown(first.fields)}; convert the file to one of {', '.join(READERS)} (docs/data.md)"
    )


def read(path: Path, format: str, style: Style) -> Iterator[Sample | Rejected]:
    """The samples and rejections of a file, in order. Streams, except for a JSON array.

    Args:
        format: a reader's name, or "auto", with which every record is of the format that it looks like.

    Raises:
        UserError: the file as a whole cannot be read, or the format is unknown.
    """
    return samples_of(files.records(path), format, style)


def read_embedded(style: Style) -> Iterator[Sample | Rejected]:
    """The samples of BFCL's retired questions in the installed bfcl-eval package."""
    return samples_of(bfcl_retired.records(), "bfcl-retired", style)


def reader_of(format: str) -> Reader:
    if format not in READERS:
        raise UserError(f"unknown data format {format!r}{nearest(format, READERS)} (known: {', '.join(READERS)})")
    return READERS[format]


def samples_of(records: Iterable[Record | Rejected], format: str, style: Style) -> Iterator[Sample | Rejected]:
    """The samples and rejections of records; see `read`."""
    if format != AUTO:
        reader_of(format)
    for record in records:
        if isinstance(record, Rejected):
            yield record
            continue
        name = format_of(record.fields) if format == AUTO else format
        if name is None:
            yield Rejected("format not known", record.where, _unknown(record.fields))
            continue
        try:
            content = READERS[name].read(record)
            if isinstance(content, Verbatim) and not style.keeps_prompts:
                content = dialogue_of(content)
            yield from dialogues.samples(content, record, style=style, source=name)
        except Unreadable as error:
            yield error.rejected(record.where)


def _unknown(fields: Mapping[str, Any]) -> str:
    names = ", ".join(shown(name, 60) for name in sorted(fields)[:8]) or "none"
    looks_like = next((name for keys, name in _OTHERS.items() if keys <= fields.keys()), None)
    hint = f"; they look like {looks_like}" if looks_like else ""
    return f"fields {names} belong to no known format{hint}"
