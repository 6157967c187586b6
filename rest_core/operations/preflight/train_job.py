"""Whether a training on several nodes finds its TrainingRuntime and a place that the nodes share."""

from __future__ import annotations

from rest_core.config import StorageConfig, TrainJobConfig
from rest_core.errors import UserError
from rest_core.operations import pods


def check(job: TrainJobConfig, storage: StorageConfig) -> str:
    """Raise `UserError` unless the stage rest-rl could make its TrainJob.

    Raises:
        NotAllowed: runtimes may not be read.
    """
    if storage.location is None:
        raise UserError(f"the {job.nodes} nodes share nothing but a storage location; set storage.location")
    api, own = pods.connect()
    namespace = job.namespace or own
    if not pods.has_training_runtime(api, namespace, job.runtime):
        raise UserError(
            f"there is no TrainingRuntime {job.runtime} in the namespace {namespace}; install Kubeflow Trainer, and "
            "apply deploy/training-runtime.yaml there"
        )
    return f"TrainingRuntime {job.runtime} is there"
