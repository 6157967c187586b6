"""The graph of a cluster through kfp's own local runner: what stands around the stages runs for real.

Here is no MLflow server, so preflight finds a problem, no stage starts, and the exit task says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kfp import local

from pipelines.platform import Platform
from pipelines.rest_pipeline import build
from rest_core import config, manifest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run's tasks."""
    folder = tmp_path_factory.mktemp("graph")
    platform = Platform.model_validate(
        {
            "kfp_url": "https://kfp.example",
            "volumes": {"work": {"claim": "w", "path": "/no-such-volume"}},
            "secrets": {"hugging_face": "hf"},
        }
    )
    settings = ("api_bank.enabled=false", f"tracking.uri=sqlite:///{folder}/mlruns/mlflow.db")
    pipeline = build(config.load("tiny", settings), platform=platform)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(folder / "artifacts"))
    with pytest.MonkeyPatch.context() as environment, pytest.raises(RuntimeError, match="preflight"):
        environment.delenv("HF_TOKEN", raising=False)
        pipeline(pipeline_run="a run")
    (run,) = (folder / "artifacts").iterdir()
    return run


def test_a_problem_stops_the_run_before_its_first_stage(artifacts: Path) -> None:
    assert {path.name for path in artifacts.iterdir()} == {"preflight", "report-status"}
    report = (artifacts / "preflight" / "report" / "report.md").read_text(encoding="utf-8")
    assert report.startswith("# Preflight: 2 problems in 5 checks")
    assert "| ❌ | Secret hf | HF_TOKEN missing or empty" in report
    assert "| ➖ | volume w | there is no service account here" in report
    assert "| ❌ | MLflow | " in report and "each pod's own disk" in report
    assert "| ✅ | model | embedded:tiny-random comes with the image |" in report
    assert (artifacts / "preflight" / "page").read_text(encoding="utf-8") == report


def test_the_exit_task_is_told_of_the_failure_and_reports_it(artifacts: Path) -> None:
    made: Any = manifest.read(artifacts / "report-status" / "report")
    assert made["config"]["final"]["state"] == "FAILED"
    assert made["config"]["links"] == {"kfp": "https://kfp.example"}
    page = (artifacts / "report-status" / "page").read_text(encoding="utf-8")
    assert page.startswith("# ❌ failed\n\nRun: a run\n")
    assert "MLflow has no run 'a run': no stage got as far as that" in page
