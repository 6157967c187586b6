"""What a run leaves behind besides its results: TrainJobs, which end with nobody, and its scratch space."""

from __future__ import annotations

from rest_core import handoff
from rest_core.config import LaunchConfig, StorageConfig
from rest_core.errors import UserError


def remove(storage: StorageConfig, launch: LaunchConfig, pipeline_run: str, *, succeeded: bool) -> list[str]:
    """Delete what a run that has ended has left; returns what was removed, or could not be, a line each.

    The scratch space of a run that has not succeeded stays: it is what a retry goes on from.
    """
    lines = []
    try:
        if launch.train_job is not None:
            from rest_core.nodes.leftovers import delete_left

            deleted = delete_left(pipeline_run, launch.train_job.namespace)
            lines += [f"The TrainJob {name} was left and has been deleted" for name in deleted]
        if storage.location is not None and succeeded:
            handoff.remove_scratch(storage.location, pipeline_run)
    except UserError as problem:
        lines.append(f"Leftovers could not be removed: {problem}")
    return lines
