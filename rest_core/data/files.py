"""Data files: JSON lines, a JSON array, parquet. The readers know what their records mean."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from rest_core.data.fields import Record, Rejected, is_unicode, json_problem, shown, text_too_deep, too_deep
from rest_core.errors import UserError

SUFFIXES = (".jsonl", ".json", ".parquet")
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
        raise _empty(path)
    if path.suffix == ".parquet":
        from rest_core.data.parquet import parquet_records  # imports pyarrow

        return parquet_records(path)
    if _first_character(path) == "[":  # no line of JSON lines begins so
        return _json_array(path)
    return _json_lines(path)


def sound_records(path: Path, remedy: str) -> Iterator[Record]:
    """The records of a file in which none may be rejected; else `UserError` with the remedy."""
    for record in records(path):
        if isinstance(record, Rejected):
            raise UserError(f"{record}; {remedy}")
        yield record


def _json_lines(path: Path) -> Iterator[Record | Rejected]:
    """One object a line; blank lines are passed over."""
    seen = False
    place, stem = f"{path}: line ", path.stem
    try:
        with path.open(encoding=_ENCODING) as stream:
            for number, line in enumerate(stream, start=1):
                if line[0] == _MARK:
                    line = line.lstrip(_MARK)
                if not line or line.isspace():
                    continue
                seen = True
                where = f"{place}{number}"
                try:
                    fields = json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield Rejected(*json_problem(error, where))
                    continue
                yield Record.of(fields, where, f"{stem}-{number}", text_too_deep(line, fields))
    except UnicodeDecodeError as error:
        raise _no_utf8(path, error) from None
    if not seen:
        raise _empty(path)


def _json_array(path: Path) -> Iterator[Record | Rejected]:
    try:
        entries = json.loads(path.read_text(encoding=_ENCODING))
    except UnicodeDecodeError as error:
        raise _no_utf8(path, error) from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: invalid JSON at line {error.lineno} column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(str(Rejected(*json_problem(error, str(path))))) from None
    if not entries:
        raise UserError(f"{path}: the JSON array is empty; give a file with records")
    for number, fields in enumerate(entries):
        yield Record.of(fields, f"{path}: record {number}", f"{path.stem}-{number}", too_deep(fields))


def _empty(path: Path) -> UserError:
    return UserError(f"{path}: the file is empty; give a file with records")


def _no_utf8(path: Path, error: UnicodeDecodeError) -> UserError:
    return UserError(f"{path}: not UTF-8 text (byte {error.start}); convert the file")


def _first_character(path: Path) -> str:
    with path.open("rb") as stream:
        return stream.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")[:1].decode("ascii", "replace")
