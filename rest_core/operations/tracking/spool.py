"""The spool: everything a stage tells MLflow is written here first, and sent from here.

A spool is a folder beside a stage's output. The stage appends one JSON line a record to `journal.jsonl`, with its
original time and step, and copies artifacts to `files/`; `delivery` reads the records in order and sends them. So a
server that is away costs nothing but delay, and no figure is lost when the stage's process dies.

    journal.jsonl    records, append-only; every attempt of a stage is a section, opened by `begin`, closed by `end`
    files/           copies of artifacts that wait to be sent
    state.json       how far the journal has been sent, and the run ids of each section
    rejected.jsonl   records that the server refused, with its answer; `rest sync` tries them again
    lock             held by the process that sends
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rest_core.errors import UserError

JOURNAL = "journal.jsonl"
REJECTED = "rejected.jsonl"

Target = Literal["run", "pipeline"]  # the stage's own run, or its parent
Record = dict[str, Any]


@dataclass(frozen=True)
class RunIds:
    """The MLflow runs that a section writes to; `*_owned` is False for runs that somebody else made and will end."""

    experiment: str
    pipeline: str
    pipeline_owned: bool
    run: str
    run_owned: bool
    root: str | None = None  # of a stage of a trial, whose parent is the trial's run: the whole pipeline's run
    root_owned: bool = False


@dataclass
class State:
    """How far a spool has been sent."""

    position: int = 0  # bytes of the journal that are done with
    sections: dict[str, RunIds] = field(default_factory=dict)  # section number -> its runs
    problem: str | None = None  # why the last attempt to send did not succeed

    @classmethod
    def read(cls, folder: Path) -> State:
        try:
            values = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        values["sections"] = {number: RunIds(**ids) for number, ids in values["sections"].items()}
        return cls(**values)

    def write(self, folder: Path) -> None:
        _replace(folder / "state.json", json.dumps(asdict(self)))


def now_ms() -> int:
    """Milliseconds since 1970, the unit of all of MLflow's times."""
    return int(time.time() * 1000)


def encode_number(value: float) -> float | str:
    """A metric as strict JSON: NaN and infinities become the strings that `float` reads."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


class Spool:
    """The writing end, one section: used by the stage's own process, from any thread."""

    def __init__(self, folder: Path, begin: Record) -> None:
        """Open a new section in `folder`; one that a killed process has left open is closed first.

        Raises `UserError` when the folder cannot be written.
        """
        self.folder = folder
        self._lock = threading.Lock()
        with self._writable():
            (folder / "files").mkdir(parents=True, exist_ok=True)
            journal = folder / JOURNAL
            if journal.exists() and not journal.read_bytes().endswith(b"\n"):
                _append(journal, b"\n")  # a torn last line: it stays visible, as a rejected record
        last = open_section(folder)
        if last is not None:
            close_killed(folder, last)
        self.section = sum(record.get("op") == "begin" for record, _ in read_records(folder)) + 1
        self.append("begin", attempt=self.section, spool_id=uuid.uuid4().hex, **begin)

    def append(self, op: str, **values: Any) -> None:
        """Append one record. Raises `UserError` when it cannot be written (disk full)."""
        record = {"op": op, "section": self.section, "time": now_ms(), **values}
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with self._lock, self._writable():
            _append(self.folder / JOURNAL, line)

    def keep(self, source: Path) -> str:
        """Copy a file into the spool; returns its name there (a path below `files/`)."""
        kept = self._new_file(source.name)
        with self._writable():
            shutil.copyfile(source, self.folder / "files" / kept)
        return kept

    def keep_bytes(self, content: bytes, name: str) -> str:
        """Write `content` into the spool as a file that MLflow will call `name`; returns its name there."""
        kept = self._new_file(name)
        with self._writable():
            (self.folder / "files" / kept).write_bytes(content)
        return kept

    def _new_file(self, name: str) -> str:
        # MLflow names an artifact after its file, so every copy has a folder of its own.
        kept = f"{uuid.uuid4().hex[:12]}/{name}"
        with self._writable():
            (self.folder / "files" / kept).parent.mkdir()
        return kept

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.folder}: tracking records cannot be written: {error.strerror or error}") from error


def read_records(folder: Path, start: int = 0) -> Iterator[tuple[Record, int]]:
    """Records from byte `start` on, each with the position behind it; an unfinished last line is left for later.

    A line that is no JSON object comes as `{"op": "unreadable", "text": …}`: it is reported, not skipped.
    """
    journal = folder / JOURNAL
    if not journal.exists():
        return
    with journal.open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict) and "op" in record and "section" in record:
                yield record, start
            elif line.strip():
                yield {"op": "unreadable", "section": 0, "text": line.decode("utf-8", "replace").strip()}, start


def open_section(folder: Path) -> Record | None:
    """The `begin` record of the journal's last section if that has not been closed, else None."""
    begin: Record | None = None
    for record, _ in read_records(folder):
        if record["op"] == "begin":
            begin = record
        elif record["op"] == "end" and begin and record["section"] == begin["section"]:
            begin = None
    return begin


def close_killed(folder: Path, begin: Record) -> None:
    """Close a section whose process is gone, so that its run does not look alive for ever."""
    error = "the process of the stage ended without a word (killed, or out of memory)"
    record = {"op": "end", "section": begin["section"], "time": now_ms(), "stage": begin["stage"]}
    record |= {"status": "KILLED", "error": error}
    _append(folder / JOURNAL, json.dumps(record).encode() + b"\n")


def read_rejected(folder: Path) -> list[Record]:
    """The records that the server refused: `{"record": …, "answer": …}`."""
    path = folder / REJECTED
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def write_rejected(folder: Path, rejected: list[Record]) -> None:
    """Replace the list of refused records."""
    if rejected:
        _replace(folder / REJECTED, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in rejected))
    else:
        (folder / REJECTED).unlink(missing_ok=True)


@contextlib.contextmanager
def sending(folder: Path, wait: bool) -> Iterator[None]:
    """Hold the right to send this spool. Raises `UserError` when another process has it and `wait` is False."""
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder}: a running stage is sending this spool; wait until it has ended") from None
        yield


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)


def _replace(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
