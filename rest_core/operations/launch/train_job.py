"""A training on several nodes: a TrainJob of Kubeflow Trainer that the stage makes, follows and deletes.

The stage stores inputs and description at the storage location (`job`); each node fetches them, trains with its
checkpoints mirrored there, and the first process leaves the result there (`worker`). A stage that is retried finds the
TrainJob by its name, which is made of what it trains, and follows it instead of starting another.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rest_core import manifest, storage
from rest_core.config import LaunchConfig, TrainJobConfig
from rest_core.credentials import without_credentials
from rest_core.disk import disk_errors
from rest_core.errors import UserError
from rest_core.operations import handoff
from rest_core.operations.launch import launcher, trainer
from rest_core.operations.launch.job import Job
from rest_core.operations.names import run_label
from rest_core.operations.result import StageResult

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

log = logging.getLogger(__name__)

# What KFP's MLflow plugin sets in the stage's pod, for the nodes to join the same run.
_JOINED_RUN = "MLFLOW_RUN_ID"
_PASSED_ON = (_JOINED_RUN, "MLFLOW_EXPERIMENT_ID", "MLFLOW_TRACKING_URI", "MLFLOW_WORKSPACE")


def run(
    job: Job,
    *,
    out: Path,
    launch: LaunchConfig,
    client: TrainerClient | None = None,
) -> StageResult:
    """Train on several nodes; `out` becomes what a training in this process would have left.

    Args:
        job: the call of rest-rl, whose section `storage` must name a location; inputs that are folders of this machine
            are stored there.
        out: folder that the stage fills.
        launch: with its `train_job`.
        client: of Kubeflow Trainer; None = the cluster that this pod runs in, else kubectl's.

    Raises:
        UserError: the error of a node, or why the TrainJob could not be made or followed.
        Preempted: this stage was stopped; the TrainJob continues, and the stage, started again, finds it.
    """
    settings = launch.train_job
    assert settings is not None
    location = job.sections["storage"]["location"]
    if location is None:
        raise UserError("launch.train_job: the nodes share nothing but a storage location; set storage.location")
    pointers = {
        name: place if isinstance(place, handoff.Pointer) else _pointer(place, location, name)
        for name, place in job.inputs.items()
    }
    job = job.model_copy(update={"inputs": pointers})
    if client is None:
        client = trainer.connect(settings.namespace)
    if not _is_done(job):
        _train(job, settings, launch.sharding, client)
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    storage.get_folder(job.result, out)
    result = StageResult.read(out)
    _delete_or_leave(client, job.name)
    return result


def _train(job: Job, settings: TrainJobConfig, sharding: str, client: TrainerClient) -> None:
    """Have the TrainJob of `job` end well; one that has failed is deleted."""
    status = trainer.status(client, job.name)
    if status == trainer.FAILED:  # in an earlier attempt
        trainer.delete(client, job.name)
        status = None
    if status is None:
        environment = trainer.accelerate_environment(launcher.accelerate_config(sharding))
        trainer.create(
            client,
            job.name,
            settings,
            location=job.store(),
            environment=environment | _mlflow_environment() | settings.environment,
            labels=settings.labels | run_label(job.pipeline_run),
        )
        log.info("TrainJob %s: %d nodes", job.name, settings.nodes)
    else:
        log.info("TrainJob %s is there already (%s): it is followed", job.name, status)
    problem = trainer.follow(client, job.name)
    if problem is None and _is_done(job):
        return
    _delete_or_leave(client, job.name)
    if problem is None:
        raise UserError(f"TrainJob {job.name} ended without a result at {job.result}; the log of its nodes is above")
    raise UserError(f"TrainJob {job.name} failed: {problem}")


def _mlflow_environment() -> dict[str, str]:
    """For the nodes to join a run that is there; an address with credentials is a Secret's, which the runtime names."""
    if _JOINED_RUN not in os.environ:
        return {}
    given = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {name: value for name, value in given.items() if without_credentials(value) == value}


def _delete_or_leave(client: TrainerClient, name: str) -> None:
    """Delete a TrainJob that has ended; where that fails nothing is lost, and the exit task deletes it."""
    try:
        trainer.delete(client, name)
    except UserError as error:
        log.warning("%s; it stays until the run's exit task deletes it", error)


def _is_done(job: Job) -> bool:
    return manifest.FILE_NAME in storage.list_files(job.result)


def _pointer(place: Path | str, location: str, name: str) -> handoff.Pointer:
    """A pointer to an input that every node can follow; a folder of this machine is stored first."""
    folder = Path(place)
    if not folder.is_dir():
        return handoff.Pointer(source=str(place))
    pointer = handoff.read(folder)
    if pointer is None:
        return handoff.store(handoff.fetch(folder), location, name)
    return pointer if pointer.files is not None else _pointer(pointer.source, location, name)
