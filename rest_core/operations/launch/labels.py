"""What TrainJobs are called, and the label by which those of a pipeline run are found."""

from __future__ import annotations

from rest_core.operations.names import run_key

RUN_LABEL = "rest-pipelines/run"
TRAINJOBS = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")  # group, version, plural


def run_label(pipeline_run: str) -> dict[str, str]:
    """The label of everything that belongs to a pipeline run."""
    return {RUN_LABEL: run_key(pipeline_run)}
