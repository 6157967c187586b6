"""A second place for checkpoints, filled while training continues: s3://, or a folder such as a mounted volume.

    <location>/<first 16 digits of the training's fingerprint>/step-000010/…   as in the training's own folder
                                                               completions/…   its tables

Each training has a folder of its own there, so that several can share a location. Of a checkpoint `state.json` is
copied last and deleted first: one without it is torn.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rest_core import storage
from rest_core.disk import disk_errors, remove, written_aside
from rest_core.errors import UserError
from rest_core.training.checkpoint import STATE, Checkpoints, TrainingState, is_name, step_of
from rest_core.training.history import TABLES, History

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """What the mirror is to hold: checkpoints, the newest last, and tables of completions."""

    checkpoints: tuple[Path, ...]
    tables: tuple[str, ...]


class Mirror:
    """Copies checkpoints to `location` in a thread of its own; at most one set of them waits, the newest.

    A copy that fails is logged and counted (`failures`), and tried again with the next checkpoint.
    """

    def __init__(self, location: str, checkpoints: Checkpoints, history: History) -> None:
        self.location = f"{location.rstrip('/')}/{checkpoints.fingerprint[:16]}"
        self.failures = 0
        self._checkpoints, self._history = checkpoints, history
        self._lock = threading.Lock()
        self._waiting: _Wanted | None = None
        self._current: _Wanted | None = None  # being copied
        self._thread: threading.Thread | None = None  # as long as there is something to copy
        self._problem: UserError | None = None  # why the newest set is not there
        self._defect: Exception | None = None
        self._torn: set[str] = set()  # names of checkpoints there that look whole

    def offer(self, state: TrainingState) -> None:
        """Have the checkpoints that are kept now, of which that of `state` is the newest, copied; returns at once."""
        wanted = _Wanted(tuple(self._checkpoints.kept(state)), tuple(state.tables))
        with self._lock:
            if self._defect is not None:
                raise self._defect
            self._waiting = wanted
            self._hold()
            if self._thread is None:
                # Not waited for at the process's end, whose grace period may be over.
                self._thread = threading.Thread(target=self._work, name="checkpoint-mirror", daemon=True)
                self._thread.start()

    def close(self, timeout: float | None = None) -> None:
        """Wait until the newest set is there, at most `timeout` seconds.

        Raises:
            UserError: it is not there.
        """
        if (thread := self._thread) is not None:
            thread.join(timeout)
            if thread.is_alive():
                raise UserError(
                    f"{self.location}: the newest checkpoint was not copied within {timeout:.0f} s; training resumes "
                    "from an older one there"
                )
        if self._defect is not None:
            raise self._defect
        if self._problem is not None:
            raise UserError(f"the newest checkpoint never reached the mirror: {self._problem}") from self._problem

    def retry(self, state: TrainingState) -> None:
        """Try once more where the last copy has failed."""
        with self._lock:
            failed = self._problem is not None and self._thread is None
        if failed:
            self.offer(state)

    def newest(self, above: int, expected: Mapping[str, Tensor]) -> Path | None:
        """Download the newest whole checkpoint after step `above` with its tables; None where there is none.

        Torn ones are logged and passed over.

        Raises:
            UserError: the location cannot be read, or the disk is full.
        """
        there = {step_of(name): name for name in _whole(storage.list_files(self.location))}
        for step in sorted(there, reverse=True):
            if step > above and self._download(there[step], expected):
                path = self._checkpoints.path(step)
                self._fetch_companions(path, expected)
                return path
        return None

    def _download(self, name: str, expected: Mapping[str, Tensor]) -> bool:
        """Whether the checkpoint was whole, and is in the training's folder now."""
        workspace = self._checkpoints.folder / f".{name}.tmp"
        aside = workspace / name
        log.info("downloading %s/%s", self.location, name)
        try:
            with disk_errors(workspace):
                remove(workspace)
                aside.mkdir(parents=True)
            try:
                storage.get_folder(f"{self.location}/{name}", aside)
                problem, _ = self._checkpoints.problem(aside, expected)
            except UserError as error:
                problem = str(error)
            if problem is None:
                with disk_errors(workspace):
                    self._checkpoints.take_in(aside, self._checkpoints.folder / name)
            else:
                log.warning("%s/%s is passed over: %s", self.location, name, problem)
                self._torn.add(name)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
        return problem is None

    def _fetch_companions(self, path: Path, expected: Mapping[str, Tensor]) -> None:
        """What a checkpoint names besides its own files: tables, and the best checkpoint."""
        state = self._checkpoints.state(path)
        for name in state.tables:
            target = self._history.table_path(name)
            try:
                with disk_errors(target), written_aside(target) as aside:
                    storage.get_file(f"{self.location}/{TABLES}/{name}", aside)
            except UserError as error:
                log.warning("a table of completions is lost: %s", error)
        if state.best is not None and not (best := self._checkpoints.path(state.best.step)).exists():
            self._download(best.name, expected)

    def _work(self) -> None:
        while True:
            with self._lock:
                wanted = self._current = self._waiting
                self._waiting = None
                if wanted is None:
                    self._hold()
                    self._thread = None
                    return
            try:
                self._copy(wanted)
                self._problem = None
            except UserError as error:
                self._problem = error
                self.failures += 1
                log.error("%s; this checkpoint is not mirrored, the next copy makes up for it", error)
            except Exception as error:  # a defect of ours: raised in the training's own thread
                self._defect = error

    def _hold(self) -> None:
        """Keep the checkpoints that wait or are being copied from being deleted."""
        held = [wanted.checkpoints for wanted in (self._current, self._waiting) if wanted is not None]
        self._checkpoints.busy = frozenset(path for checkpoints in held for path in checkpoints)

    def _copy(self, wanted: _Wanted) -> None:
        names = storage.list_files(self.location)
        whole = _whole(names) - self._torn
        for table in wanted.tables:
            if f"{TABLES}/{table}" not in names and self._history.table_path(table).is_file():
                storage.put_file(self._history.table_path(table), f"{self.location}/{TABLES}/{table}")
        for path in reversed(wanted.checkpoints):
            if path.name not in whole:
                storage.delete_folder(f"{self.location}/{path.name}", first=STATE)
                storage.upload_folder(path, f"{self.location}/{path.name}", last=STATE)
        # Only now, when the newest is there.
        folders = {name.split("/")[0] for name in names if "/" in name}
        for name in sorted(folders - {path.name for path in wanted.checkpoints} - {TABLES}):
            storage.delete_folder(f"{self.location}/{name}", first=STATE)
        self._torn.clear()


def _whole(names: list[str]) -> set[str]:
    """Names of checkpoints that have been copied to the end."""
    folders = {name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith(f"/{STATE}")}
    return {name for name in folders if is_name(name)}
