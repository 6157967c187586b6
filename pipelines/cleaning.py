"""Removing what local runs have left that no registered version needs: datasets, checkpoints, answers.

What a run said of itself stays: summary.json, report.html, the logs, and what MLflow has.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from pipelines.local import ARTIFACTS, MODEL_LINK
from pipelines.progress import SUMMARY_FILE
from pipelines.resume import CACHE, RECORD_FILE, held
from rest_core import disk
from rest_core.disk import disk_errors
from rest_core.errors import UserError

Registered = Callable[[str, str, str], bool]
"""Whether a model (by name) has a version (by number) that a pipeline run (by name) has registered."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of a local run."""

    folder: Path
    status: str
    """how the run has ended; "running", or "interrupted" where it has left no summary"""
    version: str | None
    """of the model that it has registered, where that is still there"""
    bytes: int
    """that would become free"""

    @property
    def kept(self) -> bool:
        """Whether it is not to be cleaned."""
        return self.version is not None or self.status == "running" or self.bytes == 0


def find(folders: list[Path], registered: Registered) -> Iterator[RunFolder]:
    """The run folders among `folders` and directly below them.

    Raises:
        UserError: one of `folders` neither is a run's folder nor has one below it.
    """
    for given in folders:
        if given.is_symlink():  # runs/latest
            continue
        found = [given] if _is_run(given) else sorted(path for path in given.glob("*/") if _is_run(path))
        if not found:
            raise UserError(f"{given}: no run of `rest run` or `rest ablate` is there")
        for folder in found:
            yield _looked_at(folder, registered)


def table(found: Iterable[RunFolder]) -> Table:
    """The folders with what becomes of each."""
    shown = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("run", "ended", "GB", ""):
        shown.add_column(heading, justify="right" if heading == "GB" else "left", overflow="fold")
    for run in found:
        reason = run.version or ("" if run.kept else "to be removed")
        shown.add_row(escape(str(run.folder)), run.status, f"{run.bytes / 1e9:.2f}", escape(reason))
    return shown


def remove(run: RunFolder) -> None:
    """Remove the outputs of a run's stages; it can then not be resumed.

    Raises:
        UserError: another process has begun to resume it.
    """
    with held(run.folder, run.folder.absolute() / ARTIFACTS), disk_errors(run.folder):
        for name in (RECORD_FILE, ARTIFACTS, CACHE):  # the record first: what is half removed is not resumed
            disk.remove(run.folder / name)
        if (link := run.folder / MODEL_LINK).is_symlink():
            link.unlink()


def _is_run(folder: Path) -> bool:
    known = (RECORD_FILE, SUMMARY_FILE)
    return not folder.is_symlink() and any((folder / name).is_file() for name in known)


def _looked_at(folder: Path, registered: Registered) -> RunFolder:
    try:
        summary: dict[str, Any] = json.loads(disk.read_file(folder / SUMMARY_FILE))
        status, version = str(summary["status"]), None
        if (made := summary.get("registered")) is not None:
            name, number = str(made["name"]), str(made["version"])
            version = f"{name} version {number}" if registered(name, number, str(summary["run"])) else None
    except FileNotFoundError:
        status, version = "interrupted", None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        raise UserError(f"{folder / SUMMARY_FILE}: damaged; look at the folder, and remove it by hand") from None
    try:
        with held(folder, folder.absolute() / ARTIFACTS):
            pass
    except UserError:
        status = "running"
    return RunFolder(folder, status, version, sum(_freed(folder / name) for name in (ARTIFACTS, CACHE)))


def _freed(folder: Path) -> int:
    """Bytes that become free with a folder: a file that another folder has too costs nothing here."""
    if folder.is_symlink():
        return 0
    states = (path.lstat() for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    return sum(state.st_size for state in states if state.st_nlink == 1)
