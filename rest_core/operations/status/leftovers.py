"""What a run leaves behind besides its results: TrainJobs, which end with nobody, and its scratch space."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rest_core.config import LaunchConfig, StorageConfig
from rest_core.errors import UserError
from rest_core.operations import handoff
from rest_core.operations.api_errors import one_line

log = logging.getLogger(__name__)


def remove(storage: StorageConfig, launch: LaunchConfig, pipeline_run: str, *, succeeded: bool) -> list[str]:
    """Delete what a run that has ended has left; returns what was removed, or could not be, a line each.

    The scratch space of a run that has not succeeded stays: it is what a retry goes on from.
    """
    lines: list[str] = []
    if launch.train_job is not None:
        with _told(lines):
            from rest_core.operations.launch.leftovers import delete_left

            deleted, problems = delete_left(pipeline_run, launch.train_job.namespace)
            lines += [f"The TrainJob {name} was left and has been deleted" for name in deleted]
            lines += [f"A leftover could not be removed: {problem}" for problem in problems]
    if storage.location is not None and succeeded:
        with _told(lines):
            handoff.remove_scratch(storage.location, pipeline_run)
    return lines


@contextmanager
def _told(lines: list[str]) -> Iterator[None]:
    """Whatever goes wrong with leftovers, the report is made, and says so."""
    try:
        yield
    except UserError as problem:
        lines.append(f"Leftovers could not be removed: {problem}")
    except Exception as defect:
        log.exception("leftovers could not be removed")
        lines.append(f"Leftovers could not be removed: {type(defect).__name__}: {one_line(defect)}")
