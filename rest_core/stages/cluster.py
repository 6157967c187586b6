"""What comes before and after the other stages on a cluster, and reports on the run itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rest_core import manifest
from rest_core.ablation.settings import AblationConfig, Trial
from rest_core.config import Config, LaunchConfig, Section, StorageConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.preflight.surroundings import Surroundings
from rest_core.operations.result import METRICS_FILE, StageResult, write_error
from rest_core.operations.status.final import FinalStatus, Links
from rest_core.operations.tracking import store
from rest_core.s3 import short_waits
from rest_core.stages.stage import open_stage

PAGE_FILE = "report.md"  # for people


def preflight(
    *,
    surroundings: Surroundings,
    pipeline_run: str,
    out: Path,
    ablation: AblationConfig | None = None,
    trials: Sequence[Trial] = (),
    **sections: Section,
) -> StageResult:
    """Check what the run needs of the cluster; all problems come as one `UserError`, a line each.

    `ablation` and `trials` are an ablation's, which a run may have replaced; `sections` is the whole configuration.
    """
    from rest_core.operations.preflight import checks, findings, states

    config = Config.model_validate(sections)
    listed = checks.list_checks(config, surroundings, ablation, trials)
    with store.short_waits(), short_waits():  # many checks, and one deadline for all
        found = checks.run_checks(listed)
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE_FILE
    if any(one.check == checks.MLFLOW for one in findings.problems(found)):
        # Nothing can be recorded there; the log and the artifact have the report.
        page.write_text(findings.markdown(found), encoding="utf-8")
        try:
            findings.require_none(found)
        except UserError as error:
            write_error("preflight", out, error)
            raise
    with open_stage("preflight", out, config.tracking, pipeline_run, surroundings=surroundings) as stage:
        page.write_text(findings.markdown(found), encoding="utf-8")
        stage.run.artifact(page)
        figures = {f"preflight/{name}": float(count) for name, count in findings.counts(found).items()}
        stage.run.metrics(figures)
        findings.require_none(found)
        with short_waits():
            places = states.find(config, surroundings)
        return replace(stage.finish(figures), states=places)


def report_status(
    *,
    tracking: TrackingConfig,
    storage: StorageConfig,
    launch: LaunchConfig,
    links: Links,
    final: FinalStatus,
    pipeline_run: str,
    out: Path,
) -> StageResult:
    """Say how a run on a cluster ended, where it failed and how to reproduce it; close and remove what it left."""
    from rest_core.operations.status import exit_task

    out.mkdir(parents=True, exist_ok=True)
    outcome = exit_task.conclude(
        tracking, links, final, storage=storage, launch=launch, pipeline_run=pipeline_run, page=out / PAGE_FILE
    )
    metrics = {"run/succeeded": float(outcome.succeeded)}
    (out / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    sections = {"links": links.model_dump(mode="json"), "final": final.model_dump(mode="json")}
    manifest.write(out, stage="report-status", config=sections, inputs={}, counts={**metrics, "outcome": outcome.line})
    return StageResult(metrics)
