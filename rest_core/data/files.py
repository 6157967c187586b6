"""The containers that data comes in: JSON lines, a JSON array, parquet. What the records say is for the readers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rest_core.data.fields import TOO_DEEP, Record, Rejected, too_deep
from rest_core.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet")
_PARQUET_BATCH = 256  # rows held in memory at once


def records(path: Path) -> Iterator[Record | Rejected]:
    """The records of a file, by its suffix; a `.json` file holds one array, or one object a line.

    Raises:
        UserError: the file is missing, empty, truncated, not UTF-8, of another kind, or a JSON array that does not
            parse. A line of JSON lines that does not parse is a `Rejected`.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: cannot read a {path.suffix or 'suffixless'} file; give {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; give a file with records")
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix == ".json" and _first_character(path) == "[":
        return _json_array(path)
    return json_lines(path)


def json_lines(path: Path) -> Iterator[Record | Rejected]:
    """One object a line; blank lines are passed over."""
    seen = 0
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                seen += 1
                where = f"{path}: line {number}"
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield Rejected("invalid JSON", where, str(error))
                    continue
                yield _record(fields, where, f"{path.stem}-{number}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None
    if not seen:
        raise UserError(f"{path}: the file is empty; give a file with records")


def _json_array(path: Path) -> Iterator[Record | Rejected]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: invalid JSON at line {error.lineno} column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: invalid JSON: {error}") from None
    if not entries:
        raise UserError(f"{path}: the JSON array is empty; give a file with records")
    for number, fields in enumerate(entries):
        yield _record(fields, f"{path}: record {number}", f"{path.stem}-{number}")


def _record(value: Any, where: str, name: str) -> Record | Rejected:
    if not isinstance(value, dict):
        return Rejected("not a JSON object", where, type(value).__name__)
    return Rejected(TOO_DEEP, where) if too_deep(value) else Record(value, where, name)


def _parquet(path: Path) -> Iterator[Record | Rejected]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{path}: the file has no rows; give a file with records")
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for fields in batch.to_pylist():
                    yield Record(fields, f"{path}: record {number}", f"{path.stem}-{number}")
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({' '.join(str(error).split())}); fetch it again") from None


def _first_character(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1].decode("ascii", "replace")
