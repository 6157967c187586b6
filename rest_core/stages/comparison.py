"""The trials of an ablation, compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from rest_core import manifest
from rest_core.ablation.settings import AblationConfig
from rest_core.config import TrackingConfig
from rest_core.operations.catalogue import EVALUATED
from rest_core.operations.result import StageResult
from rest_core.operations.tracking.delivery import INPUT_TAG
from rest_core.operations.tracking.runs import finish_pipeline
from rest_core.stages.stage import open_stage

log = logging.getLogger(__name__)


def aggregate(
    *,
    ablation: AblationConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    evaluations: Mapping[str, Mapping[str, Sequence[Path]]],
    out: Path,
) -> StageResult:
    """Compare the trials of an ablation, and close the pipeline's run; the report is on that run.

    Args:
        evaluations: directories of the trials' evaluations ("trained") by benchmark, in any order.
    """
    from rest_core.ablation.ablation_report import AblationReport
    from rest_core.ablation.collect import collect

    with open_stage("aggregate", out, tracking, pipeline_run, ablation=ablation) as stage:
        folders = tuple(chain.from_iterable(evaluations["trained"].values()))
        report = AblationReport(f"Ablation {pipeline_run}", ablation, collect(folders))
        stage.run.tags({f"{INPUT_TAG}{number:03}": str(folder) for number, folder in enumerate(folders)})
        stage.inputs["evaluations"] = [manifest.read(folder)["sha256"] for folder in folders]
        for note in report.notes:
            log.warning("%s", note)
        for file in report.write(out):
            stage.run.artifact(file, to="pipeline")
        result = stage.finish(report.metrics, trials=len(report.results))
    finish_pipeline(
        tracking,
        pipeline_run=pipeline_run,
        spool=out.with_name(f"{out.name}.finish.tracking"),
        description=report.markdown(),
    )
    return result


def compare_policies(
    *,
    tracking: TrackingConfig,
    pipeline_run: str,
    evaluations: Mapping[str, Mapping[str, Path]],
    out: Path,
) -> StageResult:
    """Compare the policies of a run item by item: base model, warm-up, trained policy, and the champion.

    Args:
        evaluations: directories of the evaluations by policy and benchmark; skipped ones are left out.
    """
    raise NotImplementedError


def measured(evaluations: Mapping[str, Mapping[str, Path]]) -> dict[str, dict[str, Path]]:
    """The evaluations that were made, by benchmark and by the policy's title."""
    found: dict[str, dict[str, Path]] = {}
    for one in EVALUATED:
        for benchmark, folder in evaluations.get(one.name, {}).items():
            if "skipped" not in manifest.read(folder)["counts"]:
                found.setdefault(benchmark, {})[one.title] = folder
    return found
