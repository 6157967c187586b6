"""The label by which everything that a pipeline run makes on a cluster is found."""

from __future__ import annotations

import re

RUN_LABEL = "rest-pipelines/run"


def run_label(pipeline_run: str) -> dict[str, str]:
    """The label of everything that belongs to a pipeline run; label values have at most 63 characters."""
    return {RUN_LABEL: re.sub(r"[^A-Za-z0-9._-]", "-", pipeline_run)[:63].strip("-._")}
