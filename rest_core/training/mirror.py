"""A second place for checkpoints, filled while training goes on: s3://, or a folder such as a mounted volume.

    <location>/<first 16 digits of the training's fingerprint>/step-000010/…   as in the training's own folder
                                                               completions/…   its tables

Each training has a folder of its own there, so that several can share a location. Of a checkpoint `state.json` is
copied last and deleted first: one without it is torn.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rest_core import storage
from rest_core.errors import UserError
from rest_core.training.checkpoint import CONTENT, STATE, Checkpoints, TrainingState, is_name, step_of
from rest_core.training.history import TABLES, History

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Wanted:
    """What the mirror is to hold: checkpoints, the newest last, and tables of completions."""

    checkpoints: tuple[Path, ...]
    tables: tuple[str, ...]


class Mirror:
    """Copies checkpoints to `location` from a thread of its own; at most one set of them waits, the newest.

    A copy that fails is logged and counted (`failures`), and tried again with the next checkpoint.
    """

    def __init__(self, location: str, checkpoints: Checkpoints, history: History) -> None:
        self.location = f"{location.rstrip('/')}/{checkpoints.fingerprint[:16]}"
        self.failures = 0
        self._checkpoints, self._history = checkpoints, history
        self._changed = threading.Condition()
        self._waiting: _Wanted | None = None
        self._current: _Wanted | None = None  # being copied
        self._closing = False
        self._stuck: UserError | None = None  # why the newest set is not there
        self._defect: Exception | None = None
        self._there: set[str] | None = None  # names of checkpoints that are there; None: not looked yet
        self._refused: set[str] = set()  # those of them that are torn or foreign
        self._tables: set[str] = set()
        self._thread: threading.Thread | None = None

    def offer(self, state: TrainingState) -> None:
        """Have the checkpoints that are kept now, of which that of `state` is the newest, copied; returns at once."""
        wanted = _Wanted(tuple(self._checkpoints.kept(state)), tuple(state.tables))
        with self._changed:
            if self._defect is not None:
                raise self._defect
            self._waiting = wanted
            self._hold()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="checkpoint-mirror", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> None:
        """Wait until what was offered last is there, at most `timeout` seconds.

        Raises:
            UserError: it is not there.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._changed:
            while self._defect is None and (self._waiting or self._current):
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise UserError(
                        f"{self.location}: the newest checkpoint was not copied within {timeout:.0f} s; "
                        "training goes on from an older one there"
                    )
                self._changed.wait(left)
            if self._defect is not None:
                raise self._defect
            self._closing = True
            self._changed.notify_all()
            if self._stuck is not None:
                raise UserError(f"the newest checkpoint never reached the mirror: {self._stuck}") from self._stuck

    def retry(self, state: TrainingState) -> None:
        """Try once more where the last copy has failed."""
        with self._changed:
            stuck = self._stuck is not None and self._waiting is None and self._current is None
        if stuck:
            self.offer(state)

    def newest(self, above: int, expected: Mapping[str, Tensor]) -> Path | None:
        """Download the newest whole checkpoint after step `above` with its tables; None where there is none.

        Torn and foreign ones are named and passed over.

        Raises:
            UserError: the location cannot be read, or the disk is full.
        """
        there = {step_of(name): name for name in _whole(storage.list_files(self.location))}
        for step in sorted(there, reverse=True):
            if step > above and (path := self._download(there[step], expected)) is not None:
                self._fetch_companions(path, expected)
                return path
        return None

    def _download(self, name: str, expected: Mapping[str, Tensor]) -> Path | None:
        final = self._checkpoints.folder / name
        workspace = self._checkpoints.folder / f".{name}.tmp"
        shutil.rmtree(workspace, ignore_errors=True)
        aside = workspace / name
        try:
            with storage.disk_errors(aside):
                aside.mkdir(parents=True)
            log.info("downloading %s/%s", self.location, name)
            for file in (STATE, *CONTENT):
                try:
                    storage.get_file(f"{self.location}/{name}/{file}", aside / file)
                except UserError as error:
                    self._refuse(name, str(error))
                    return None
            problem, _ = self._checkpoints.problem(aside, expected)
            if problem is not None:
                self._refuse(name, problem)
                return None
            with storage.disk_errors(final):
                self._checkpoints.take_in(aside, final)
        finally:
            shutil.rmtree(workspace, ignore_errors=True)
        return final

    def _refuse(self, name: str, why: str) -> None:
        log.warning("%s/%s is passed over: %s", self.location, name, why)
        self._refused.add(name)

    def _fetch_companions(self, path: Path, expected: Mapping[str, Tensor]) -> None:
        """What a checkpoint names besides its own files: tables, and the best checkpoint."""
        state = self._checkpoints.state(path)
        for name in state.tables:
            target = self._history.table_path(name)
            with storage.disk_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
            try:
                storage.get_file(f"{self.location}/{TABLES}/{name}", target)
            except UserError as error:
                log.warning("a table of completions is lost: %s", error)
        if state.best is not None and state.best.step != state.step:
            best = self._checkpoints.path(state.best.step)
            if not best.exists():
                self._download(best.name, expected)

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None and not self._closing:
                    self._changed.wait()
                if self._waiting is None:
                    return
                wanted = self._current = self._waiting
                self._waiting = None
            stuck: UserError | None = None
            defect: Exception | None = None
            try:
                self._copy(wanted)
            except UserError as error:
                stuck = error
                log.error("%s; this checkpoint is not mirrored, training goes on and tries again with the next", error)
            except Exception as error:  # a defect of ours: raised in the training's own thread
                defect = error
            with self._changed:
                self.failures += stuck is not None
                self._stuck, self._defect, self._current = stuck, defect, None
                self._hold()
                self._changed.notify_all()
                if defect is not None:
                    return

    def _hold(self) -> None:
        """Keep what waits or is being copied from being deleted."""
        held = [wanted.checkpoints for wanted in (self._current, self._waiting) if wanted is not None]
        self._checkpoints.busy = frozenset(path for checkpoints in held for path in checkpoints)

    def _copy(self, wanted: _Wanted) -> None:
        if self._there is None:
            names = storage.list_files(self.location)
            self._there = _whole(names) - self._refused
            self._tables = {name.split("/")[1] for name in names if name.startswith(f"{TABLES}/")}
        for table in wanted.tables:
            if table not in self._tables and self._history.table_path(table).is_file():
                storage.put_file(self._history.table_path(table), f"{self.location}/{TABLES}/{table}")
                self._tables.add(table)
        for path in reversed(wanted.checkpoints):
            if path.name not in self._there:
                for file in (*CONTENT, STATE):
                    storage.put_file(path / file, f"{self.location}/{path.name}/{file}")
                self._there.add(path.name)
        # Only now, when the newest is there.
        for name in sorted((self._there | self._refused) - {path.name for path in wanted.checkpoints}):
            place = f"{self.location}/{name}"
            for file in (STATE, *storage.list_files(place)):
                storage.delete_file(f"{place}/{file}")
            self._there.discard(name)
            self._refused.discard(name)


def _whole(names: list[str]) -> set[str]:
    """Names of checkpoints that have been copied to the end."""
    folders = {name.split("/")[0] for name in names if name.count("/") == 1 and name.endswith(f"/{STATE}")}
    return {name for name in folders if is_name(name)}
