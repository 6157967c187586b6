"""Resuming a local run in its folder: what is done is kept, and an interrupted training goes on from its checkpoint.

<folder>/run.json                what the run was started with
<folder>/cache/                  kfp.local's cache: the stages that are done, and where their outputs lie
<folder>/artifacts/.unfinished/  what the other stages had left; each takes it up when it starts again
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from components.runtime import ROOT_VARIABLE, UNFINISHED
from pipelines.monitor import is_done, task_folders
from pipelines.progress import SUMMARY_FILE
from rest_core import disk
from rest_core.ablation.settings import AblationConfig, Scheme
from rest_core.config import Config, with_overrides
from rest_core.errors import UserError
from rest_core.processes import rest_command

RECORD_FILE = "run.json"
CACHE = "cache"
LOCK = ".lock"

Runner = Literal["subprocess", "docker"]


class Trials(BaseModel):
    """What `rest ablate` trains and compares: the keywords of `pipelines.ablation_pipeline.build`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schemes: dict[str, Scheme]
    seeds: tuple[int, ...]
    ablation: AblationConfig
    parallelism: int


class RunRecord(BaseModel):
    """What a run was started with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str
    """the pipeline run's name in MLflow"""
    runner: Runner
    config: dict[str, Any]
    trials: Trials | None = None
    """of `rest ablate`"""

    @property
    def command(self) -> str:
        """Which command has started it."""
        return "run" if self.trials is None else "ablate"

    def write(self, folder: Path) -> None:
        """Leave it in a run's folder."""
        disk.write_file(folder / RECORD_FILE, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def read(cls, folder: Path, command: Literal["run", "ablate"]) -> RunRecord:
        """The record of the run that a command is to resume in a folder.

        Raises:
            UserError: there is none, it is damaged, another command's, or the run has succeeded.
        """
        path, summary = folder / RECORD_FILE, folder / SUMMARY_FILE
        try:
            record = cls.model_validate_json(disk.read_file(path))
            succeeded = summary.exists() and json.loads(disk.read_file(summary))["status"] == "succeeded"
        except FileNotFoundError:
            raise UserError(f"--resume {folder}: no run of `rest {command}` there ({RECORD_FILE} is missing)") from None
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            what = error.strerror if isinstance(error, OSError) else f"it, or {SUMMARY_FILE}, is damaged"
            raise UserError(f"{path}: cannot be read ({what}); start a new run") from None
        if record.command != command:
            raise UserError(f"--resume {folder}: `rest {record.command}` has started it; resume it by that command")
        if succeeded:
            raise UserError(f"--resume {folder}: this run has succeeded, nothing is left to do")
        return record

    def configuration(self, folder: Path, overrides: tuple[str, ...]) -> Config:
        """The configuration of the run, with `a.b=value` overrides applied: stages that read these sections run again.

        Raises:
            UserError: a key or value is wrong.
        """
        return with_overrides(self.config, overrides, where=str(folder / RECORD_FILE))


@contextmanager
def held(folder: Path, root: Path) -> Iterator[None]:
    """The right to run stages in a run's folder, whose pipeline has the root `root`.

    Raises:
        UserError: another process has it, or a stage has outlived the one that had it.
    """
    with disk.held(folder / LOCK, f"{folder}: another process runs it; wait until it has ended"):
        if left := _stage_of(root):
            raise UserError(f"{folder}: process {left} still runs a stage of it; wait until it has ended, or end it")
        yield


def _stage_of(root: Path) -> int | None:
    """A process that runs a stage of a local pipeline."""
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(ROOT_VARIABLE) == str(root) and process.pid != os.getpid():
                return process.pid
    return None


@contextmanager
def told_how_to_resume(folder: Path, command: Literal["run", "ablate"]) -> Iterator[None]:
    """Add to whatever ends the block before its time how the command resumes the run, where it had begun."""
    try:
        yield
    except BaseException as error:
        if (folder / RECORD_FILE).is_file():
            hint = f"resume it with: {rest_command()} {command} --resume {shlex.quote(str(folder))}"
            if isinstance(error, SystemExit):  # by SIGTERM, which has no message
                sys.stderr.write(f"{hint}\n")
            error.add_note(hint)
        raise


def located(folder: Path) -> Path:
    """A run's folder as it is shown: itself, or the one that `runs/latest` points to."""
    return folder.with_name(folder.readlink().name) if folder.is_symlink() else folder


def set_unfinished_aside(root: Path) -> list[str]:
    """Move what stages have left that were not done below `root`, a pipeline's root, to where they take it up again.

    Returns:
        The tasks that are done, in the order in which they have run.
    """
    disk.refuse_links(root / UNFINISHED)
    done = []
    for task in sorted(task_folders(root), key=lambda path: path.stat().st_ctime):
        if is_done(task):
            done.append(task.name)
            continue
        aside = root / UNFINISHED / Path(*task.relative_to(root).parts[1:])
        with disk.disk_errors(root):
            disk.remove(aside)  # taken up by the attempt that has ended since
            aside.parent.mkdir(parents=True, exist_ok=True)
            task.replace(aside)
    return done
