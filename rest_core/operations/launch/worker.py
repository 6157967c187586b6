"""One process of a training on several nodes: fetch the inputs, run the stage's command, store its result."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rest_core import manifest, storage
from rest_core.errors import EXIT_USER_ERROR, UserError
from rest_core.operations import handoff
from rest_core.operations.launch.command import arguments, write_profile
from rest_core.operations.launch.job import Job
from rest_core.processes import is_main_process


def run(location: str) -> None:
    """Run `rest train` as the job at `location` says, in a process that torchrun has started.

    Ends the process with the command's exit code where that is not 0. Inputs are fetched once a node; what the training
    needs besides lies in the working folder.
    """
    from pipelines import cli

    with _errors_told():
        job = Job.read(location)
        work = Path.cwd() / job.name / os.environ["RANK"]
        folders = {
            name: _fetched(reference, work / name)
            for name, reference in (("dataset", job.dataset), ("policy", job.policy))
        }
        with storage.disk_errors(work):
            write_profile(work / "profile.yaml", job.sections())
    out = work / "trained"
    cli.main(
        arguments("train", work / "profile.yaml", folders, pipeline_run=job.pipeline_run, out=out, trial=job.trial)
    )
    if is_main_process():
        with _errors_told():
            for path in sorted(out.iterdir(), key=lambda path: path.name == manifest.FILE_NAME):  # the manifest last
                storage.put_file(path, f"{job.result}/{path.name}")


@contextmanager
def _errors_told() -> Iterator[None]:
    """As the command line tells its own errors: the stage looks for that line in the node's log."""
    try:
        yield
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USER_ERROR)


def _fetched(reference: handoff.Pointer, folder: Path) -> Path | str:
    """The folder of an input, checked; of a model that no stage has made, its source."""
    if reference.files is None:
        return reference.source
    with storage.disk_errors(folder):
        handoff.write(folder, reference)
    return handoff.fetch(folder)
