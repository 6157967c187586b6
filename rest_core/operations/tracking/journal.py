"""The journal: everything a stage records is written here first, and sent to MLflow from here.

Each attempt of a stage has a journal, a folder below the stage's spool:

    NAME.tracking/001/
        journal.jsonl   records, append-only: `begin`, what was recorded, `end`
        files/          copies of artifacts that wait to be sent
        state.json      how far the journal has been sent, and the ids of its runs
        lock            held by the stage as long as it runs, then by whoever sends the rest

A record is with the operating system before the method that records it returns, so it survives a process that is
killed. A server that is away costs nothing but delay.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import AcquireReturnProxy, FileLock, Timeout

from rest_core.errors import UserError

JOURNAL = "journal.jsonl"

Target = Literal["run", "pipeline"]  # the stage's own run, or its parent
Lane = Literal["values", "files"]  # sent one after the other: an artifact store that is away does not delay values
Record = dict[str, Any]


@dataclass(frozen=True)
class RunIds:
    """The MLflow runs that a stage records in."""

    experiment: str
    run: str  # the stage's own; where the pipeline is finished, the pipeline's
    pipeline: str  # its parent: the pipeline's run, or in an ablation the trial's
    root: str | None  # above a trial's run: the pipeline's
    owned: list[str]  # those of them that may be ended: not the ones that somebody else (KFP) has made


@dataclass
class State:
    """How far a journal has been sent."""

    sent: dict[Lane, int] = field(default_factory=lambda: {"values": 0, "files": 0})  # bytes of the journal
    ids: RunIds | None = None
    refused: int = 0  # values and files that MLflow did not accept

    @classmethod
    def read(cls, path: Path) -> State:
        try:
            values = json.loads((path / "state.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        ids = values.pop("ids")
        return cls(**values, ids=RunIds(**ids) if ids else None)

    def write(self, path: Path) -> None:
        aside = path / "state.json.tmp"
        aside.write_text(json.dumps(asdict(self)), encoding="utf-8")
        aside.replace(path / "state.json")


class Journal:
    """The writing end: used by the stage's own process, from any thread."""

    def __init__(self, spool: Path) -> None:
        """Make the journal of a new attempt in `spool`. Raises `UserError` when it cannot be written."""
        self.path = spool
        with self._writable():
            self.attempt = 1 + max((int(path.parent.name) for path in spool.glob(f"*/{JOURNAL}")), default=0)
            self.path = spool / f"{self.attempt:03}"
            (self.path / "files").mkdir(parents=True, exist_ok=True)
            self._lock = hold(self.path).lock
        self._one_writer = threading.Lock()

    def append(self, op: str, **values: Any) -> None:
        """Append one record. Raises `UserError` when it cannot be written (disk full)."""
        with self._one_writer, self._writable():
            _append(self.path, {"op": op, **values})

    def keep(self, source: Path | bytes, name: str) -> str:
        """Copy a file or its content, which MLflow will call `name`; returns where it is below `files/`."""
        kept = f"{uuid.uuid4().hex[:12]}/{name}"  # MLflow names artifacts after their files: a folder for each
        target = self.path / "files" / kept
        with self._writable():
            target.parent.mkdir()
            if isinstance(source, bytes):
                target.write_bytes(source)
            else:
                shutil.copyfile(source, target)
        return kept

    def close(self) -> None:
        """Let others send what is left."""
        self._lock.release()

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.path}: tracking records cannot be written: {error.strerror or error}") from error


def find(folder: Path) -> list[Path]:
    """The journals at or below `folder`, attempts of a stage in their order."""
    return sorted(path.parent for path in folder.rglob(JOURNAL))


def hold(path: Path) -> AcquireReturnProxy:
    """The right to write and send a journal, until its release. Raises `UserError` when another process has it."""
    try:
        return FileLock(path / "lock", thread_local=False).acquire(blocking=False)
    except Timeout:
        raise UserError(f"{path}: a running stage sends these records; wait until it has ended") from None


def read_records(path: Path, start: int = 0) -> Iterator[tuple[Record, int]]:
    """Records from byte `start` on, each with the position behind it; a line without its end is not read.

    A line that is no record comes as `{"op": "unreadable", "text": …}`, so that it is reported and not skipped.
    """
    with (path / JOURNAL).open("rb") as stream:
        stream.seek(start)
        for line in stream:
            if not line.endswith(b"\n"):
                return
            start += len(line)
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if not isinstance(record, dict) or "op" not in record:
                record = {"op": "unreadable", "text": line.decode("utf-8", "replace").strip()}
            yield record, start


def lane(record: Record) -> Lane:
    return "files" if "file" in record else "values"


def left(path: Path) -> int:
    """How many records of one journal MLflow has not got."""
    sent = State.read(path).sent
    return sum(after > sent[lane(record)] for record, after in read_records(path, min(sent.values())))


def unsent(folder: Path) -> int:
    """How many records of the journals at or below `folder` MLflow has not got."""
    return sum(map(left, find(folder)))


def close_killed(path: Path) -> None:
    """End a journal whose process is gone, so that its run does not look alive for ever."""
    ops = [record["op"] for record, _ in read_records(path)]
    if ops and "end" not in ops:
        _append(path, {"op": "end", "status": "KILLED", "error": "the stage's process was killed (out of memory?)"})


def _append(path: Path, record: Record) -> None:
    now = int(time.time() * 1000)  # milliseconds since 1970, MLflow's unit
    line = json.dumps({"time": now, **record}, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    with (path / JOURNAL).open("ab+") as stream:
        stream.seek(-1 if stream.tell() else 0, os.SEEK_END)
        if stream.read(1) not in (b"", b"\n"):  # the line before was cut off
            line = b"\n" + line
        stream.write(line)
        if record["op"] == "end":
            stream.flush()
            os.fsync(stream.fileno())
