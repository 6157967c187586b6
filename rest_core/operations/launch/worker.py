"""One process of a training: read the job, call the stage's function.

`accelerate launch` runs this module on one machine; on several nodes Kubeflow Trainer calls `run_on_node`, which
fetches the inputs and stores the result besides.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from rest_core import logs, manifest, storage
from rest_core.disk import disk_errors
from rest_core.operations import handoff
from rest_core.operations.catalogue import CATALOGUE
from rest_core.operations.launch.job import Job
from rest_core.processes import errors_reported, is_main_process, skip_last_collections


def run(job: Job, inputs: dict[str, Path | str], out: Path) -> None:
    """Call the stage's function as `job` says; of several processes the first alone logs what is no error."""
    logs.configure(sys.stderr, level=logging.WARNING if is_main_process() else logging.ERROR)
    CATALOGUE[job.stage].load()(**job.keywords(), **inputs, out=out)


def run_on_node(location: str) -> None:
    """Run the job at `location`, in a process that torchrun has started; ends the process where that fails.

    Inputs are fetched once a node; what the training needs besides lies in the working folder.
    """
    skip_last_collections()
    with errors_reported():
        job = Job.read(location)
        work = Path.cwd() / job.name / os.environ["RANK"]
        run(job, {name: _fetched(place, work / name) for name, place in job.inputs.items()}, work / "out")
        if is_main_process():
            for path in sorted((work / "out").iterdir(), key=lambda path: path.name == manifest.FILE_NAME):  # it last
                storage.put_file(path, f"{job.result}/{path.name}")


def _fetched(place: handoff.Pointer | str, folder: Path) -> Path | str:
    """The folder of an input, checked; of a model that no stage has made, its source."""
    if isinstance(place, str):
        return place
    if place.files is None:
        return place.source
    with disk_errors(folder):
        handoff.write(folder, place)
    return handoff.fetch(folder)


def main(file: str, out: str) -> None:
    """Run the job in a file of this machine."""
    skip_last_collections()
    with errors_reported():
        job = Job.model_validate_json(Path(file).read_bytes())
        # A policy may be a hub id or a URI, which are no paths.
        inputs = {name: str(place) if name == "policy" else Path(str(place)) for name, place in job.inputs.items()}
        run(job, inputs, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
