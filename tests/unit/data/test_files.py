from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from rest_core.data import files
from rest_core.data.fields import Record, Rejected
from rest_core.errors import UserError


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.jsonl", b"\n\n", "the file is empty"),
        ("a.json", b"[]", "the JSON array is empty"),
        ("a.json", b'[{"a": 1},\n {"a" 2}]', r"invalid JSON at line 2 column 7"),
        ("a.json", b'[{"a": 1}', r"invalid JSON at line 1 column 10"),
        ("a.json", b"[" * 100000, "nested too deeply"),
        ("a.json", b'[{"a": "\xff"}]', r"not UTF-8 text \(byte 8\)"),
        ("a.jsonl", b'{"a": "\xff"}', "not UTF-8 text"),
        ("a.parquet", b"PAR1 but not really PAR1", "not a whole parquet file"),
        ("a.csv", b"a,b", r"cannot read a \.csv file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    path = write(tmp_path / name, content)
    with pytest.raises(UserError, match=message) as caught:
        list(files.records(path))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        files.records(tmp_path / "gone.jsonl")


def test_truncated_and_empty_parquet(tmp_path: Path):
    whole = tmp_path / "whole.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"a": n} for n in range(1000)]), whole)
    assert len(list(files.records(whole))) == 1000
    cut = write(tmp_path / "cut.parquet", whole.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cut\.parquet: not a whole parquet file"):
        list(files.records(cut))
    empty = tmp_path / "empty.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], pyarrow.int64())}), empty)
    with pytest.raises(UserError, match="no rows"):
        list(files.records(empty))


def test_a_column_of_parquet_whose_name_is_no_text(tmp_path: Path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"question": "q"}]), path)
    damaged = write(path, path.read_bytes().replace(b"question", b"\xffuestion"))
    with pytest.raises(UserError, match=r"a\.parquet: not a whole parquet file"):
        list(files.records(damaged))


def test_damage_inside_a_parquet_page_is_found(tmp_path: Path):
    path = tmp_path / "a.parquet"
    table = pyarrow.Table.from_pylist([{"a": f"text {n}"} for n in range(5000)])
    pyarrow.parquet.write_table(table, path, write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[30:200] = bytes(170)
    with pytest.raises(UserError, match="not a whole parquet file"):
        list(files.records(write(path, bytes(content))))


def test_a_json_file_may_hold_lines(tmp_path: Path):
    path = write(tmp_path / "a.json", b'\n{"a": 1}\n\nnonsense\n{"a": 2}\n')
    first, bad, last = files.records(path)
    assert isinstance(first, Record) and first.where == f"{path}: line 2"
    assert isinstance(bad, Rejected) and bad.where == f"{path}: line 4"
    assert isinstance(last, Record) and last.fields == {"a": 2}
