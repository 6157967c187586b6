"""What a training has reported up to its newest checkpoint, so that a training that resumes reports all of its steps.

    completions/       one file a table of completions, for example step-000010.json

Metrics are in memory: a checkpoint holds them (`history.jsonl`, one line an entry: {"step": n, metric: value, …}; a
step may have several entries) and the hashes of the tables. What was reported later is dropped on a resume, as those
steps are done again. MLflow's own journal cannot stand in for it: each attempt is an MLflow run of its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rest_core.disk import is_plain_file, written_aside
from rest_core.manifest import sha256_file

log = logging.getLogger(__name__)

FILE_NAME = "history.jsonl"  # in a checkpoint
TABLES = "completions"


class History:
    """The entries and tables of a training in `folder`; used by the first process alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, float]] = []
        self.tables: dict[str, str] = {}  # file name below completions/ -> SHA-256

    @property
    def content(self) -> bytes:
        """The entries as a checkpoint's file holds them."""
        return "".join(json.dumps(entry) + "\n" for entry in self.entries).encode()

    def restore(self, content: bytes, tables: Mapping[str, str]) -> None:
        """Go back to what a checkpoint holds: later entries and tables go."""
        self.entries = [json.loads(line) for line in content.decode().splitlines()]
        folder = self.folder / TABLES
        folder.mkdir(parents=True, exist_ok=True)
        self.tables = {}
        for name, digest in tables.items():
            path = self.table_path(name)
            if is_plain_file(path) and sha256_file(path) == digest:
                self.tables[name] = digest
            else:
                log.warning("%s is missing or not what was written: this table of completions is lost", path)
        for path in folder.iterdir():
            if path.name in self.tables:
                continue
            if path.is_symlink() or path.is_file():
                path.unlink()
            else:
                log.warning("%s is passed over: no table of this training", path)

    def add(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one entry."""
        self.entries.append({"step": step, **{name: float(value) for name, value in metrics.items()}})

    def metrics(self) -> Iterator[tuple[dict[str, float], int]]:
        """The metrics of each entry, and its step."""
        for entry in self.entries:
            yield {name: value for name, value in entry.items() if name != "step"}, int(entry["step"])

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
