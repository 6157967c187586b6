"""The containers that data comes in: JSON lines, a JSON array, parquet. What the records say is for the readers.

A record is JSON, whatever it lies in. In a parquet file every struct has the keys of all rows, None where a row has
not got one: such keys are taken out, as nobody wrote them. A None in JSON, and so in a column of JSON text, was written
and stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from rest_core.data.fields import (
    TOO_DEEP,
    Record,
    Rejected,
    Unreadable,
    is_unicode,
    json_problem,
    parse_json,
    shown,
    text_too_deep,
    too_deep,
)
from rest_core.errors import UserError, one_line

SUFFIXES = (".jsonl", ".json", ".parquet")
_PARQUET_BATCH = 256  # rows held in memory at once
_ENCODING = "utf-8-sig"  # with a byte order mark or without
_MARK = "\ufeff"  # the same mark where files were put together


def records(path: Path) -> Iterator[Record | Rejected]:
    """The records of a file: parquet by its suffix, else one JSON array or one object a line.

    Raises:
        UserError: the file is missing, empty, truncated, not UTF-8, of another kind, or a JSON array that does not
            parse. A line of JSON lines that does not parse is a `Rejected`.
    """
    if not is_unicode(str(path)):
        raise UserError(f"{shown(str(path), 1000)}: the file's name is not UTF-8; rename it")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: cannot read a {path.suffix or 'suffixless'} file; give {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty; give a file with records")
    if path.suffix == ".parquet":
        return _parquet(path)
    if _first_character(path) == "[":  # no line of JSON lines begins so
        return _json_array(path)
    return json_lines(path)


def json_lines(path: Path) -> Iterator[Record | Rejected]:
    """One object a line; blank lines are passed over."""
    seen = 0
    place, stem = f"{path}: line ", path.stem
    try:
        with path.open(encoding=_ENCODING) as stream:
            for number, line in enumerate(stream, start=1):
                if line[0] == _MARK:
                    line = line.lstrip(_MARK)
                if not line or line.isspace():
                    continue
                seen += 1
                where = f"{place}{number}"
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield Rejected(*json_problem(error, where))
                    continue
                yield _record(fields, where, f"{stem}-{number}", text_too_deep(line, fields))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None
    if not seen:
        raise UserError(f"{path}: the file is empty; give a file with records")


def _json_array(path: Path) -> Iterator[Record | Rejected]:
    try:
        entries = json.loads(path.read_text(encoding=_ENCODING))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); convert the file") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: invalid JSON at line {error.lineno} column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        reason, where, detail = json_problem(error, str(path))
        raise UserError(str(Rejected(reason, where, detail))) from None
    if not entries:
        raise UserError(f"{path}: the JSON array is empty; give a file with records")
    for number, fields in enumerate(entries):
        yield _record(fields, f"{path}: record {number}", f"{path.stem}-{number}", too_deep(fields))


def _record(value: Any, where: str, name: str, is_too_deep: bool) -> Record | Rejected:
    if not isinstance(value, dict):
        return Rejected("not a JSON object", where, type(value).__name__)
    return Rejected(TOO_DEEP, where) if is_too_deep else Record(value, where, name)


def _parquet(path: Path) -> Iterator[Record | Rejected]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{path}: the file has no rows; give a file with records")
            columns = {field.name: _decoder(field.type, field.name) for field in file.schema_arrow}
            number = 0
            for batch in file.iter_batches(batch_size=_PARQUET_BATCH):
                for row in _rows(batch):
                    yield _parquet_record(row, columns, f"{path}: record {number}", f"{path.stem}-{number}")
                    number += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole parquet file ({one_line(error)}); fetch it again") from None


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch, in place of one that Python has no value for the error."""
    try:
        yield from batch.to_pylist()
    except (UnicodeDecodeError, OverflowError) as error:
        if batch.num_rows == 1:
            yield error
            return
        for place in range(batch.num_rows):
            yield from _rows(batch.slice(place, 1))


def _parquet_record(
    row: dict[str, Any] | Exception, columns: dict[str, _Decoder], where: str, name: str
) -> Record | Rejected:
    if isinstance(row, Exception):
        return Rejected("a value that cannot be read", where, str(row))
    try:
        fields = {key: columns[key](value) for key, value in row.items() if value is not None}
    except Unreadable as error:
        return Rejected(error.reason, f"{where}: field {error.field!r}", error.detail)
    return _record(fields, where, name, too_deep(fields))


_Decoder = Callable[[Any], Any]


def _decoder(type: pyarrow.DataType, field: str) -> _Decoder:
    """What makes JSON of a column's values as `to_pylist` gives them; it never meets None."""
    if isinstance(type, pyarrow.JsonType):  # the type of `datasets` for what differs from row to row
        return lambda value: parse_json(value, field)
    if isinstance(type, pyarrow.BaseExtensionType):
        return _decoder(type.storage_type, field)
    if pyarrow.types.is_struct(type):
        members = {member.name: _decoder(member.type, f"{field}.{member.name}") for member in type}
        return lambda value: {key: members[key](inner) for key, inner in value.items() if inner is not None}
    if pyarrow.types.is_map(type):
        inner_of = _decoder(type.item_type, field)
        return lambda value: {str(key): None if inner is None else inner_of(inner) for key, inner in value}
    if pyarrow.types.is_nested(type) and hasattr(type, "value_type"):
        element = _decoder(type.value_type, field)
        return lambda value: [None if inner is None else element(inner) for inner in value]
    if pyarrow.types.is_dictionary(type):
        return _decoder(type.value_type, field)
    if any(is_type(type) for is_type in _PLAIN_TYPES):
        return lambda value: value
    return _as_text


def _as_text(value: Any) -> str:
    """Dates and the like; bytes where text was written without its type.

    Other bytes become text that is not valid Unicode: where a sample is made of it, `validate` refuses it.
    """
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


_PLAIN_TYPES = (
    pyarrow.types.is_string,
    pyarrow.types.is_large_string,
    pyarrow.types.is_string_view,
    pyarrow.types.is_integer,
    pyarrow.types.is_floating,
    pyarrow.types.is_boolean,
    pyarrow.types.is_null,
)


def _first_character(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1].decode("ascii", "replace")
