"""Records of parquet files.

In a parquet file every struct has the keys of all rows, None where a row has not got one: such keys are taken out, as
nobody wrote them. A None in a column of JSON text was written and stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from pyarrow import types

from rest_core.data.fields import Record, Rejected, Unreadable, parse_json, too_deep
from rest_core.errors import UserError, one_line

_BATCH = 256  # rows held in memory at once
_PLAIN_TYPES = (
    *(types.is_string, types.is_large_string, types.is_string_view),
    *(types.is_integer, types.is_floating, types.is_boolean, types.is_null),
)

_Decoder = Callable[[Any], Any]


def parquet_records(path: Path) -> Iterator[Record | Rejected]:
    """A record a row.

    Raises:
        UserError: the file has no rows or is not whole.
    """
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            if file.metadata.num_rows == 0:
                raise UserError(f"{path}: the file has no rows; give a file with records")
            columns = {field.name: _decoder(field.type, field.name) for field in file.schema_arrow}
            rows = (row for batch in file.iter_batches(batch_size=_BATCH) for row in _rows(batch))
            for number, row in enumerate(rows):
                yield _record(row, columns, f"{path}: record {number}", f"{path.stem}-{number}")
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's damaged name
        raise UserError(f"{path}: not a whole parquet file ({one_line(error)}); fetch it again") from None


def _rows(batch: pyarrow.RecordBatch) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch; the error in place of one that Python has no value for."""
    try:
        yield from batch.to_pylist()
    except (UnicodeDecodeError, OverflowError) as error:
        if batch.num_rows == 1:
            yield error
            return
        for place in range(batch.num_rows):
            yield from _rows(batch.slice(place, 1))


def _record(row: dict[str, Any] | Exception, columns: dict[str, _Decoder], where: str, name: str) -> Record | Rejected:
    if isinstance(row, Exception):
        return Rejected("a value that cannot be read", where, str(row))
    try:
        fields = {key: columns[key](value) for key, value in row.items() if value is not None}
    except Unreadable as error:
        return error.rejected(where)
    return Record.of(fields, where, name, too_deep(fields))


def _decoder(type: pyarrow.DataType, field: str) -> _Decoder:
    """The function that makes JSON of a column's values as `to_pylist` gives them; it never meets None."""
    if isinstance(type, pyarrow.JsonType):  # the type of `datasets` for values of different types
        return lambda value: parse_json(value, field)
    if isinstance(type, pyarrow.BaseExtensionType):
        return _decoder(type.storage_type, field)
    if types.is_struct(type):
        members = {member.name: _decoder(member.type, f"{field}.{member.name}") for member in type}
        return lambda value: {key: members[key](inner) for key, inner in value.items() if inner is not None}
    if types.is_map(type):
        inner_of = _decoder(type.item_type, field)
        return lambda value: {str(key): None if inner is None else inner_of(inner) for key, inner in value}
    if types.is_nested(type) and hasattr(type, "value_type"):
        element = _decoder(type.value_type, field)
        return lambda value: [None if inner is None else element(inner) for inner in value]
    if types.is_dictionary(type):
        return _decoder(type.value_type, field)
    if any(is_type(type) for is_type in _PLAIN_TYPES):
        return lambda value: value
    return _as_text


def _as_text(value: Any) -> str:
    """Dates and the like; bytes where text was written without its type.

    Other bytes become text that is not valid Unicode: where a sample is made of it, `validate` refuses it.
    """
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
