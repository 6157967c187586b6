"""Public files that some tests read and that do not come with the project: where they are, or the reason to skip."""

from __future__ import annotations

import os
from pathlib import Path

# The folder with one folder a source; beside the checkout unless the environment names another.
FOLDER = Path(os.environ.get("REST_TEST_DATA") or Path(__file__).parents[2] / "shared" / "data")
SOURCES = {
    "api-bank": "github.com/qiancheng0/ToolRL, benchmarks/API-Bank",
    "toolrl": "github.com/qiancheng0/ToolRL, dataset",
    "kfp/kfp_api_single_file.swagger.json": "github.com/kubeflow/pipelines, backend/api/v2beta1/swagger",
}


def public(name: str) -> Path | None:
    """The file or folder `name` of `SOURCES`; None where it is not at hand."""
    return path if (path := FOLDER / name).exists() else None


def missing(name: str) -> str:
    """Why a test that reads `name` is skipped."""
    return f"{name} of {SOURCES[name]} is not in REST_TEST_DATA (docs/developing.md)"
