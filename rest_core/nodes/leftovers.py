"""TrainJobs that a pipeline run has left, because their stage was killed or stopped; without the SDK (exit task)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rest_core import pods
from rest_core.errors import UserError
from rest_core.nodes.api_errors import one_line, told
from rest_core.nodes.labels import run_label

if TYPE_CHECKING:
    from kubernetes.client import CustomObjectsApi

TRAINJOBS = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")  # group, version, plural


def delete_left(pipeline_run: str, namespace: str | None, api: CustomObjectsApi | None = None) -> list[str]:
    """Delete the TrainJobs of a pipeline run; returns their names.

    Args:
        pipeline_run: key of the pipeline run, on a cluster the KFP run's id.
        namespace: where its pods run; None = this pod's own.
        api: None = that of the cluster that this pod runs in, else of kubectl's.

    Raises:
        UserError: there is no cluster, or it refuses or does not answer.
    """
    from kubernetes import client, config
    from kubernetes.client import ApiException

    if api is None:
        try:
            config.load_config()
        except config.ConfigException as error:
            raise UserError(f"TrainJobs of {pipeline_run}: no cluster is configured here ({one_line(error)})") from None
        api = client.CustomObjectsApi()
    try:
        namespace = namespace or pods.own_namespace()
    except pods.NotAllowed as problem:
        raise UserError(f"TrainJobs of {pipeline_run}: {problem}") from None
    group, version, plural = TRAINJOBS
    selector = ",".join(f"{key}={value}" for key, value in run_label(pipeline_run).items())
    with told(f"TrainJobs with {selector}"):
        try:
            found = api.list_namespaced_custom_object(group, version, namespace, plural, label_selector=selector)
        except ApiException as error:
            if error.status == 404:  # the cluster has no Kubeflow Trainer
                return []
            raise
        names = [str(item["metadata"]["name"]) for item in found["items"]]
        for name in names:
            api.delete_namespaced_custom_object(group, version, namespace, plural, name=name)
    return names
