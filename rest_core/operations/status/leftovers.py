"""What a run leaves behind besides its results: TrainJobs, which nobody else deletes, and its scratch space."""

from __future__ import annotations

from rest_core.config import LaunchConfig, StorageConfig
from rest_core.errors import UserError
from rest_core.operations import handoff, pods
from rest_core.operations.api_errors import Missing, api_errors
from rest_core.operations.names import TRAINJOBS, run_label
from rest_core.operations.status.report import noted

_TIMEOUT = {"_request_timeout": 10}  # seconds


def remove(
    storage: StorageConfig, launch: LaunchConfig, pipeline_run: str, *, succeeded: bool, notes: list[str]
) -> None:
    """Delete what a run that has ended has left, and note what was removed, or could not be.

    The scratch space of a run that has not succeeded stays: a retry resumes from it.
    """
    if launch.train_job is not None:
        with noted(notes, "Leftovers could not be removed"):
            deleted, problems = delete_train_jobs(pipeline_run, launch.train_job.namespace)
            notes += [f"The TrainJob {name} was left and has been deleted" for name in deleted]
            notes += [f"A leftover could not be removed: {problem}" for problem in problems]
    if storage.location is not None and succeeded:
        with noted(notes, "Leftovers could not be removed"):
            handoff.remove_scratch(storage.location, pipeline_run)


def delete_train_jobs(pipeline_run: str, namespace: str | None) -> tuple[list[str], list[str]]:
    """Delete the TrainJobs of a pipeline run; returns the names of those deleted, and why others could not be.

    They are left where their stage was killed or stopped. The exit task has no SDK of Kubeflow Trainer.

    Args:
        pipeline_run: key of the pipeline run.
        namespace: where its pods run; None = this pod's own.
    """
    from kubernetes.client import CustomObjectsApi

    connected, own = pods.connect()
    api = CustomObjectsApi(connected.api_client)
    group, version, plural = TRAINJOBS
    place = (group, version, namespace or own, plural)
    selector = ",".join(f"{key}={value}" for key, value in run_label(pipeline_run).items())
    try:
        with api_errors(f"TrainJobs with {selector}"):
            found = api.list_namespaced_custom_object(*place, label_selector=selector, **_TIMEOUT)
    except Missing:  # the cluster has no Kubeflow Trainer
        return [], []
    deleted, problems = [], []
    for name in (str(item["metadata"]["name"]) for item in found["items"]):
        try:
            with api_errors(f"TrainJob {name}"):
                api.delete_namespaced_custom_object(*place, name=name, **_TIMEOUT)
            deleted.append(name)
        except Missing:  # it has gone by itself
            continue
        except UserError as problem:
            problems.append(str(problem))
    return deleted, problems
