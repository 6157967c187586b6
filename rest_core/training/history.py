"""What a training has logged, in its own folder, so that one which is taken up again shows all of its steps.

    history.jsonl      one line an entry: {"step": n, metric: value, …}; a step may have several entries
    completions/       one file a table of completions, for example step-000010.json

A checkpoint holds the history up to its step and the hashes of the tables; what was logged later is taken back.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rest_core.disk import written_aside
from rest_core.manifest import sha256_file

log = logging.getLogger(__name__)

FILE_NAME = "history.jsonl"
TABLES = "completions"
_MAX_BYTES = 1 << 30


class History:
    """The entries and tables of a training in `folder`; used by the first process alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, float]] = []
        self.tables: dict[str, str] = {}  # file name below completions/ -> SHA-256

    @property
    def content(self) -> bytes:
        """The entries as the file holds them."""
        return "".join(map(_line, self.entries)).encode()

    def restore(self, content: bytes, tables: Mapping[str, str]) -> None:
        """Take the folder back to what a checkpoint names: later entries and tables go."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.entries = [json.loads(line) for line in content.decode().splitlines()]
        with written_aside(self.folder / FILE_NAME) as aside:
            aside.write_bytes(content)
        self.tables = {}
        for name, digest in tables.items():
            path = self.table_path(name)
            if path.is_file() and sha256_file(path) == digest:
                self.tables[name] = digest
            else:
                log.warning("%s is missing or not what was written: this table of completions is lost", path)
        for path in (self.folder / TABLES).glob("*"):
            if path.name not in self.tables:
                path.unlink()

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one entry."""
        entry = {"step": step, **metrics}
        with (self.folder / FILE_NAME).open("a", encoding="utf-8") as stream:
            stream.write(_line(entry))
        self.entries.append(entry)

    def add_table(self, rows: list[dict[str, Any]], step: int) -> None:
        """Write one table of completions; it is on the disk when this returns, as checkpoints name it."""
        path = self.table_path(f"step-{step:06d}.json")
        content = json.dumps(rows, ensure_ascii=False, indent=1).encode() + b"\n"
        with written_aside(path) as aside:
            aside.write_bytes(content)
        self.tables[path.name] = hashlib.sha256(content).hexdigest()

    def table_path(self, name: str) -> Path:
        return self.folder / TABLES / name

    def read_table(self, name: str) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(self.table_path(name).read_text(encoding="utf-8"))
        return rows


def unreadable(content: bytes, last_step: int) -> str | None:
    """What keeps `content` from being a history up to `last_step`; None when it is one."""
    if len(content) > _MAX_BYTES:
        return f"{FILE_NAME} has {len(content)} bytes"
    try:
        for number, line in enumerate(content.decode().splitlines(), start=1):
            entry = json.loads(line)
            step = entry.pop("step", None) if isinstance(entry, dict) else None
            if step is None or not all(type(value) is float for value in entry.values()):
                return f"{FILE_NAME}, line {number}: no metrics of a step"
            if type(step) is not int or not 0 <= step <= last_step:
                return f"{FILE_NAME}, line {number}: no step up to {last_step}"
    except (ValueError, RecursionError) as error:
        return f"{FILE_NAME}: {' '.join(str(error).split()):.100}"
    return None


def _line(entry: Mapping[str, float]) -> str:
    return json.dumps({name: value if name == "step" else float(value) for name, value in entry.items()}) + "\n"
