"""Readers: one module a format, each a function from a record to samples.

A reader takes the record, the prompt style for data that brings no prompt of its own, and yields a `Sample` for every
turn that can be trained on and a `Rejected` for every one that cannot. It may raise `Unreadable` where the record as a
whole cannot be read. The container (JSON lines, JSON array, parquet) is `rest_core.data.files`' matter. docs/data.md
shows every format.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rest_core.data import files
from rest_core.data.fields import Record, Rejected, Unreadable, shown
from rest_core.data.prompts import Style, lists_tools
from rest_core.data.readers import (
    bfcl_executable,
    chat,
    glaive,
    jsonl,
    sharegpt,
    toolace,
    toolrl_rl,
    toolrl_sft,
    trl,
    xlam,
)
from rest_core.errors import UserError, nearest
from rest_core.records import Sample

Use = Literal["sft", "rl"]
AUTO = "auto"


class UnknownFormat(UserError):
    """No record of a file belongs to a format that can be read."""


@dataclass(frozen=True)
class Reader:
    """A format: how its records are told from others, and read."""

    samples: Callable[[Record, Style], Iterator[Sample | Rejected]]
    keys: frozenset[str]  # fields that a record of this format has
    use: tuple[Use, ...] = ("sft", "rl")  # what the data was made for
    has: Callable[[Mapping[str, Any]], bool] = lambda fields: True  # more than fields, where other formats have these

    def knows(self, fields: Mapping[str, Any]) -> bool:
        return self.keys <= fields.keys() and self.has(fields)


def _is_toolrl(fields: Mapping[str, Any]) -> bool:
    """Alpaca's data has the same fields, and no tools."""
    return isinstance(fields["instruction"], str) and lists_tools(fields["instruction"])


def _is_toolace(fields: Mapping[str, Any]) -> bool:
    """ShareGPT's data has the same fields; only in ToolACE's does the system text list the tools."""
    said = fields["system"]
    return isinstance(said, str) and not fields.get("tools") and chat.lists_tools(said)


# In the order in which a record is asked: formats whose fields are a subset of another's come later.
READERS: dict[str, Reader] = {
    toolrl_rl.NAME: Reader(toolrl_rl.samples, toolrl_rl.KEYS, use=("rl",)),
    toolrl_sft.NAME: Reader(toolrl_sft.samples, toolrl_sft.KEYS, use=("sft",), has=_is_toolrl),
    toolace.NAME: Reader(toolace.samples, toolace.KEYS, has=_is_toolace),
    xlam.NAME: Reader(xlam.samples, xlam.KEYS),
    bfcl_executable.NAME: Reader(bfcl_executable.samples, bfcl_executable.KEYS),
    glaive.NAME: Reader(glaive.samples, frozenset(), has=glaive.knows),
    sharegpt.NAME: Reader(sharegpt.samples, sharegpt.KEYS),
    trl.NAME: Reader(trl.samples, trl.KEYS),
    jsonl.NAME: Reader(jsonl.samples, jsonl.KEYS),
}

# Formats that people have and that hold no tool use, or not enough of it to be read: fields → what it is.
_OTHERS: dict[frozenset[str], str] = {
    frozenset({"chosen", "rejected"}): "preference data (chosen and rejected)",
    frozenset({"instruction", "output"}): "Alpaca's, which has no tools",
    frozenset({"text"}): "plain text, without turns and tools",
    frozenset({"prompt"}): "prompts without answers",
}


def format_of(fields: Mapping[str, Any]) -> str | None:
    """The format of a record, None where it belongs to none that can be read."""
    return next((name for name, reader in READERS.items() if reader.knows(fields)), None)


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
    """The samples of BFCL's retired executable questions in the installed bfcl-eval package."""
    return samples_of(bfcl_executable.records(), bfcl_executable.NAME, style)


def reader_of(format: str) -> Reader:
    if format not in READERS:
        raise UserError(f"unknown data format {format!r}{nearest(format, READERS)} (known: {', '.join(READERS)})")
    return READERS[format]


def samples_of(records: Iterable[Record | Rejected], format: str, style: Style) -> Iterator[Sample | Rejected]:
    """The samples and rejections of records; see `read`."""
    reader = None if format == AUTO else reader_of(format)
    for record in records:
        if isinstance(record, Rejected):
            yield record
            continue
        if (chosen := reader) is None:
            name = format_of(record.fields)
            if name is None:
                yield Rejected("format not known", record.where, _unknown(record.fields))
                continue
            chosen = READERS[name]
        try:
            yield from chosen.samples(record, style)
        except Unreadable as error:
            yield error.rejected(record)


def _unknown(fields: Mapping[str, Any]) -> str:
    names = ", ".join(shown(name, 60) for name in sorted(fields)[:8]) or "none"
    looks_like = next((name for keys, name in _OTHERS.items() if keys <= fields.keys()), None)
    hint = f"; they look like {looks_like}" if looks_like else ""
    return f"fields {names} belong to no known format{hint}"
