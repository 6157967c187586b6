"""TrainJobs that a pipeline run has left, because their stage was killed or stopped; without the SDK (exit task)."""

from __future__ import annotations

from rest_core.errors import UserError
from rest_core.operations import pods
from rest_core.operations.api_errors import api_error, told
from rest_core.operations.launch.labels import TRAINJOBS, run_label

_TIMEOUT_SECONDS = 10


def delete_left(pipeline_run: str, namespace: str | None) -> tuple[list[str], list[str]]:
    """Delete the TrainJobs of a pipeline run; returns the names of those deleted, and why others could not be.

    Args:
        pipeline_run: key of the pipeline run, on a cluster the KFP run's id.
        namespace: where its pods run; None = this pod's own.

    Raises:
        UserError: this is no pod of a cluster, or the cluster refuses or does not answer.
    """
    from kubernetes.client import CustomObjectsApi

    try:
        connected, own = pods.connect()
    except pods.NotAllowed as problem:
        raise UserError(f"TrainJobs of {pipeline_run}: {problem}") from None
    api, namespace = CustomObjectsApi(connected.api_client), namespace or own
    group, version, plural = TRAINJOBS
    selector = ",".join(f"{key}={value}" for key, value in run_label(pipeline_run).items())
    try:
        with told(f"TrainJobs with {selector}"):
            found = api.list_namespaced_custom_object(
                group, version, namespace, plural, label_selector=selector, _request_timeout=_TIMEOUT_SECONDS
            )
    except UserError as problem:
        if _is_missing(problem):  # the cluster has no Kubeflow Trainer
            return [], []
        raise
    deleted, problems = [], []
    for name in (str(item["metadata"]["name"]) for item in found["items"]):
        try:
            with told(f"TrainJob {name}"):
                api.delete_namespaced_custom_object(
                    group, version, namespace, plural, name=name, _request_timeout=_TIMEOUT_SECONDS
                )
        except UserError as problem:
            if not _is_missing(problem):  # else it has gone by itself
                problems.append(str(problem))
        else:
            deleted.append(name)
    return deleted, problems


def _is_missing(problem: UserError) -> bool:
    answer = api_error(problem)
    return answer is not None and answer.status == 404
