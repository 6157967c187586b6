"""The journal: everything a stage records is written here first, and sent to MLflow from here.

Each attempt of a stage has a journal, a folder below the stage's spool:

    NAME.tracking/001/
        journal.jsonl   records, append-only: `begin`, what was recorded, `end`
        files/          copies of artifacts that wait to be sent
        state.json      how far the journal has been sent, and the ids of its runs
        lock            held by the stage as long as it runs, then by whoever sends the rest

A record is with the operating system before the method that records it returns, so it survives a process that is
killed. A server that is away costs nothing but delay.

A journal may have been copied from elsewhere. Nothing outside its folder is read, written or deleted because of what it
says: lines are checked (`records`), links and what is no plain file are passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from filelock import AcquireReturnProxy, FileLock, Timeout
from pydantic import Field, TypeAdapter

from rest_core.disk import is_plain_file, written_aside
from rest_core.errors import UserError
from rest_core.operations.tracking.records import MAX_LINE, Record, parse

JOURNAL = "journal.jsonl"

Lane = Literal["values", "files"]  # sent one after the other: an artifact store that is away does not delay values
_Count = Annotated[int, Field(ge=0)]
_MAX_STATE = 2**20  # bytes of state.json


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

    sent: dict[Lane, _Count] = field(default_factory=lambda: {"values": 0, "files": 0})  # bytes of the journal
    ids: RunIds | None = None
    refused: _Count = 0  # values and files that MLflow did not accept

    @classmethod
    def read(cls, path: Path) -> State:
        """Of a journal; of one that has no state, or a damaged one, that nothing is sent: it is sent again then."""
        try:
            with _plain_file(path / "state.json") as stream:
                state = _STATE.validate_json(stream.read(_MAX_STATE))
            with _plain_file(path / JOURNAL) as records:
                right = set(state.sent) == set(cls().sent) and all(
                    _is_line_end(records, position) for position in state.sent.values()
                )
        except (OSError, ValueError):
            return cls()
        return state if right and (state.ids is not None or not any(state.sent.values())) else cls()

    def write(self, path: Path) -> None:
        with written_aside(path / "state.json") as aside:
            aside.write_text(json.dumps(asdict(self)), encoding="utf-8")


_STATE = TypeAdapter(State)


class Journal:
    """The writing end: used by the stage's own process, from any thread."""

    def __init__(self, spool: Path) -> None:
        """Make the journal of a new attempt in `spool`. Raises `UserError` when it cannot be written."""
        self.path = spool
        with self._writable():
            before = [path.parent.name for path in spool.glob(f"*/{JOURNAL}")]
            self.attempt = 1 + max((int(name) for name in before if name.isdecimal()), default=0)
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
    return sorted(path.parent for path in folder.rglob(JOURNAL) if is_plain_file(path))


def hold(path: Path) -> AcquireReturnProxy:
    """The right to write and send a journal, until its release.

    Raises:
        UserError: another process has it, or the folder cannot be written.
    """
    lock = path / "lock"
    if lock.is_symlink() or (lock.exists() and not is_plain_file(lock)):
        raise UserError(f"{lock}: is no plain file; these records did not come from a run, and are not sent")
    try:
        return FileLock(lock, thread_local=False).acquire(blocking=False)
    except Timeout:
        raise UserError(f"{path}: a running stage sends these records; wait until it has ended") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); copy it to where it can") from error


def read_records(path: Path, start: int = 0) -> Iterator[tuple[Record, int]]:
    """Records from byte `start` on, each with the position behind it; a line without its end is not read.

    A line that is no record comes as one that says so (`records.parse`): it is reported and not skipped.
    """
    with _plain_file(path / JOURNAL) as stream:
        position = stream.seek(start)
        while line := stream.readline(MAX_LINE + 1):
            length, end = len(line), line[-1:]
            while end != b"\n" and (more := stream.readline(MAX_LINE)):  # what is too long is passed over
                length, end = length + len(more), more[-1:]
            if end != b"\n":
                return
            first = position == 0
            position += length
            yield parse(line, first=first), position


def kept_file(path: Path, name: str) -> Path:
    """A file that waits in a journal's folder to be sent, by the name that a record gives it.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is a link or no plain file, or lies outside of `files/`.
        OSError: it cannot be read.
    """
    files = path / "files"
    file = files / name
    inside = file.parent.parent == files and not files.is_symlink() and not file.parent.is_symlink()
    if not inside or file.name in ("", ".", ".."):
        raise ValueError("it is outside of the journal's folder")
    with _plain_file(file):
        return file


def forget(file: Path) -> None:
    """Delete a file that `kept_file` has given, with the folder that it has for itself."""
    with contextlib.suppress(OSError):
        file.unlink()
        file.parent.rmdir()


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
    records = (record for record, _ in read_records(path))
    begin = next(records, {"op": "unreadable"})
    if begin["op"] == "begin" and all(record["op"] != "end" for record in records):
        what = "the process that ran the pipeline" if begin["stage"] is None else "the stage's process"
        _append(path, {"op": "end", "status": "KILLED", "error": f"{what} was killed (out of memory?)"})


def _append(path: Path, record: Record) -> None:
    now = int(time.time() * 1000)  # milliseconds since 1970, MLflow's unit
    text = json.dumps({"time": now, **record}, ensure_ascii=False, allow_nan=False)
    line = text.encode("utf-8", "replace") + b"\n"  # a file's name may be no Unicode
    with (path / JOURNAL).open("ab+") as stream:
        stream.seek(-1 if stream.tell() else 0, os.SEEK_END)
        if stream.read(1) not in (b"", b"\n"):  # the line before was cut off
            line = b"\n" + line
        stream.write(line)
        if record["op"] in ("begin", "end"):  # without them the rest cannot be sent, or the run looks alive
            stream.flush()
            os.fsync(stream.fileno())


def _plain_file(path: Path) -> BinaryIO:
    """Open a file for reading. Raises `ValueError` where it is a link, a folder, a pipe or the like, and `OSError`."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("it is no plain file")
    return path.open("rb")


def _is_line_end(stream: BinaryIO, position: int) -> bool:
    """Whether a record ends there: at the beginning, too, nothing is cut."""
    if position == 0:
        return True
    size = stream.seek(0, os.SEEK_END)
    if position > size:
        return False
    stream.seek(position - 1)
    return stream.read(1) == b"\n"
