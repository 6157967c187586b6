"""Names of pipeline runs, as labels and folders take them, and the label of a run's TrainJobs."""

from __future__ import annotations

import hashlib
import re

from rest_core.errors import UserError

TRAINJOBS = ("trainer.kubeflow.org", "v1alpha1", "trainjobs")  # group, version, plural
_RUN_LABEL = "rest-pipelines/run"
_LONGEST = 63  # Kubernetes' limit for the value of a label
_HASH = 10


def run_label(pipeline_run: str) -> dict[str, str]:
    """The label of everything that belongs to a pipeline run."""
    return {_RUN_LABEL: run_key(pipeline_run)}


def run_key(pipeline_run: str) -> str:
    """A name of letters, digits, dots, underscores and hyphens that no other pipeline run has.

    Where a run's own name is no such name, a hash makes it differ from others that would look the same.

    Raises:
        UserError: the name is empty, or of dots alone.
    """
    if not pipeline_run.strip(". "):
        raise UserError(f"pipeline run {pipeline_run!r}: give it a name with letters or digits")
    name = re.sub(r"[^A-Za-z0-9._-]", "-", pipeline_run).strip("-._")
    if name == pipeline_run and len(name) <= _LONGEST:
        return name
    digest = hashlib.sha256(pipeline_run.encode()).hexdigest()[:_HASH]
    return f"{name[: _LONGEST - _HASH - 1]}-{digest}".lstrip("-._")
