"""What a stage hands to whoever called it, and the error that it leaves in its folder."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rest_core import manifest
from rest_core.disk import disk_errors, held, read_file, write_file
from rest_core.errors import EXIT_USER_ERROR, Preempted, UserError
from rest_core.operations import handoff

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
ERROR_FILE = "error.json"
OVERVIEW_FILE = "overview.json"  # of compare-policies: the headline figures of all policies
REGISTERED_FILE = "registered.json"  # of compare-and-register: the version, and what the gate says of it


@dataclass(frozen=True)
class StageResult:
    """What a stage hands to whoever called it, next to its folder."""

    metrics: dict[str, float]
    skipped: str | None = None
    """Why the stage did nothing."""
    notes: tuple[str, ...] = ()
    """Lines for whoever waits at a terminal."""
    states: Mapping[str, str] = field(default_factory=dict)
    """Of a stage that looks at places: their states, by section."""

    @classmethod
    def read(cls, out: Path) -> StageResult:
        """The result of a stage that other processes have run, from its folder."""
        metrics = json.loads(read_file(out / METRICS_FILE))
        return cls(metrics, manifest.read(out)["counts"].get("skipped"))


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """The right to write a stage's folder and what is beside it, as long as the block runs.

    Raises:
        UserError: another process has it.
    """
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    lock = out.with_name(f".{out.name}.lock")
    with held(lock, f"{out}: another process writes it; wait until it has ended, or choose another --out"):
        yield


def clear(out: Path) -> None:
    """Make a stage's folder, and remove what says how an earlier attempt has ended."""
    out.mkdir(parents=True, exist_ok=True)
    for stale in (ERROR_FILE, METRICS_FILE, manifest.FILE_NAME, handoff.FILE_NAME):
        (out / stale).unlink(missing_ok=True)


def write_error(stage: str, out: Path, error: UserError | Preempted) -> None:
    """Leave an error as `error.json`, for whoever started the stage."""
    exit_code = error.exit_code if isinstance(error, Preempted) else EXIT_USER_ERROR
    report = {"stage": stage, "message": str(error), "exit_code": exit_code}
    try:
        write_file(out / ERROR_FILE, json.dumps(report) + "\n")
    except (OSError, UserError) as problem:  # the folder may be what is wrong; the error itself is raised in any case
        log.warning("%s cannot be written: %s", out / ERROR_FILE, problem)


def raise_error(out: Path, prefix: str = "") -> None:
    """Raise the error that a stage has left in its folder; nothing happens where there is none, or a damaged one."""
    try:
        left = json.loads(read_file(out / ERROR_FILE))
        message, exit_code = f"{prefix}{left['message']}", int(left.get("exit_code", EXIT_USER_ERROR))
    except FileNotFoundError:
        return
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as problem:
        log.warning("%s cannot be read: %s", out / ERROR_FILE, problem)
        return
    if exit_code == EXIT_USER_ERROR:
        raise UserError(message)
    raise Preempted(message, exit_code=exit_code)


@contextmanager
def writing_errors(stage: str, out: Path) -> Iterator[None]:
    """Around a stage that runs elsewhere: an error that has left no `error.json` there leaves one here."""
    try:
        yield
    except (UserError, Preempted) as error:
        out.mkdir(parents=True, exist_ok=True)
        write_error(stage, out, error)
        raise
