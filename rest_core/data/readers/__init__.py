"""Readers: one module a format, each a function from a record to samples.

A reader takes the record, the prompt style for data that brings no prompt of its own, and yields a `Sample` for every
turn that can be trained on and a `Rejected` for every one that cannot. It may raise `Unreadable` where the record as a
whole cannot be read. The container (JSON lines, JSON array, parquet) is `rest_core.data.files`' matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rest_core.data import files
from rest_core.data.fields import Record, Rejected, Unreadable
from rest_core.data.prompts import Style
from rest_core.data.readers import bfcl_executable, jsonl, toolace, toolrl_rl, toolrl_sft, xlam
from rest_core.errors import UserError, nearest
from rest_core.records import Sample

Use = Literal["sft", "rl"]


@dataclass(frozen=True)
class Reader:
    """A format: how its records are told from others, and read."""

    samples: Callable[[Record, Style], Iterator[Sample | Rejected]]
    keys: frozenset[str]  # fields that a record of this format has
    use: tuple[Use, ...] = ("sft", "rl")  # what the data was made for


# In the order in which `detect` asks: formats whose fields are a subset of another's come later.
READERS: dict[str, Reader] = {
    "toolrl-rl": Reader(toolrl_rl.samples, toolrl_rl.KEYS, use=("rl",)),
    "toolrl-sft": Reader(toolrl_sft.samples, toolrl_sft.KEYS, use=("sft",)),
    "toolace": Reader(toolace.samples, toolace.KEYS),
    "xlam": Reader(xlam.samples, xlam.KEYS),
    "bfcl-executable": Reader(bfcl_executable.samples, bfcl_executable.KEYS),
    "jsonl": Reader(jsonl.samples, jsonl.KEYS),
}


def detect(path: Path) -> str:
    """The format of a file, from the fields of its first readable record.

    Raises:
        UserError: the file cannot be read, or its fields belong to no known format.
    """
    first = next((record for record in files.records(path) if isinstance(record, Record)), None)
    if first is None:
        raise UserError(f"{path}: no record can be read; the file should hold JSON objects")
    for name, reader in READERS.items():
        if reader.keys <= first.fields.keys():
            return name
    raise UserError(
        f"{first.where}: fields {', '.join(sorted(first.fields)) or 'none'} belong to no known format; "
        f"set data.sources[].format to one of {', '.join(READERS)}"
    )


def read(path: Path, format: str, style: Style) -> Iterator[Sample | Rejected]:
    """The samples and rejections of a file, in order. Streams, except for a JSON array.

    Raises:
        UserError: the file as a whole cannot be read, or the format is unknown.
    """
    return _samples(files.records(path), reader_of(format), style)


def read_embedded(style: Style) -> Iterator[Sample | Rejected]:
    """The samples of BFCL's retired executable questions in the installed bfcl-eval package."""
    return _samples(bfcl_executable.records(), READERS["bfcl-executable"], style)


def reader_of(format: str) -> Reader:
    if format not in READERS:
        raise UserError(f"unknown data format {format!r}{nearest(format, READERS)} (known: {', '.join(READERS)})")
    return READERS[format]


def _samples(records: Iterable[Record | Rejected], reader: Reader, style: Style) -> Iterator[Sample | Rejected]:
    for record in records:
        if isinstance(record, Rejected):
            yield record
            continue
        try:
            yield from reader.samples(record, style)
        except Unreadable as error:
            yield error.rejected(record)
