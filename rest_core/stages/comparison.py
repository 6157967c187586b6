"""The trials of an ablation, and the policies of a run, compared."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_core import manifest
from rest_core.ablation.settings import AblationConfig
from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations import handoff
from rest_core.operations.catalogue_entry import EVALUATED, bound
from rest_core.operations.result import METRICS_FILE, OVERVIEW_FILE, StageResult
from rest_core.operations.tracking.runs import finish_pipeline
from rest_core.operations.tracking.tags import INPUT_TAG
from rest_core.stages.stage import open_stage

if TYPE_CHECKING:
    from rest_core.evaluation.comparison import Comparison

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
        for folder in folders:
            handoff.fetch(folder)
        report = AblationReport(f"Ablation {pipeline_run}", ablation, collect(folders))
        stage.run.tags({f"{INPUT_TAG}{number:03}": str(folder) for number, folder in enumerate(folders)})
        stage.inputs["evaluations"] = [manifest.read(folder)["sha256"] for folder in folders]
        for note in report.notes:
            log.warning("%s", note)
        for file in report.write(out):
            stage.run.artifact(file, to="pipeline")
        stage.on_parent = report.metrics
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
    """Compare the policies of a run item by item: base model, warm-up, trained policy; and this with the champion.

    Evaluations that do not compare stop no run: the page and the log say why.

    Args:
        evaluations: directories of the evaluations by policy and benchmark; skipped ones are left out.
    """
    from rest_core.evaluation.comparison import compare

    with open_stage("compare-policies", out, tracking, pipeline_run) as stage:
        for policy, reports in evaluations.items():
            for benchmark, folder in reports.items():
                stage.add_input(f"{benchmark}_{policy}", folder)
        metrics: dict[str, float] = {}
        overview: list[dict[str, Any]] = []
        pages: list[str] = []
        problems: list[str] = []
        for place, benchmark, measured in _comparisons(evaluations):
            try:
                compared = compare(list(measured.values()), list(measured))
            except UserError as problem:
                log.warning("%s", problem)
                problems.append(f"{', '.join(measured)} on {benchmark}: {problem}")
                continue
            for file in compared.write(out / place):
                stage.run.artifact(file, f"comparison/{place}", to="pipeline")
                pages += [file.read_text(encoding="utf-8")] if file.suffix == ".html" else []
            metrics |= compared.metrics()
            overview += _overview(compared)
        if not pages and not problems:
            return stage.skip("fewer than two policies were evaluated", quiet=True)
        # Pages of several benchmarks, one after another: browsers read that as one.
        text = "\n".join([*(f"<p>Not compared: {html.escape(one)}</p>" for one in problems), *pages])
        (out / "comparison.html").write_text(text, encoding="utf-8")
        (out / OVERVIEW_FILE).write_text(json.dumps(overview, indent=2) + "\n", encoding="utf-8")
        figures = {f"{one['policy']}/{row['figure']}": one["value"] for row in overview for one in row["policies"]}
        return stage.finish(figures | metrics, **({"problems": problems} if problems else {}))


def _comparisons(
    evaluations: Mapping[str, Mapping[str, Path]],
) -> Iterator[tuple[str, str, dict[str, Path]]]:
    """Of each comparison: its directory's name, the benchmark, and the evaluations by their policies' titles."""
    made: dict[str, dict[str, Path]] = {}
    for one in EVALUATED:
        for benchmark, folder in evaluations.get(one.name, {}).items():
            if "skipped" not in manifest.read(folder)["counts"]:
                made.setdefault(benchmark, {})[one.title] = folder
    for benchmark, by_title in made.items():
        champion = by_title.pop("champion", None)
        if len(by_title) > 1:
            yield benchmark, benchmark, by_title
        if champion is not None and by_title:
            newest = next(reversed(by_title.items()))
            yield f"{benchmark}-champion", benchmark, {"champion": champion} | dict([newest])


def _overview(compared: Comparison) -> list[dict[str, Any]]:
    """A row a headline figure: each policy's value and each pair's difference, with their 95 % intervals."""
    benchmark = compared.evaluations[0].measured.benchmark
    return [
        {
            "figure": f"{benchmark}/{figure}",
            "policies": [
                {"policy": one.name, "value": one.value(figure)} | _bounds(one.directory, f"{benchmark}/{figure}")
                for one in compared.evaluations
            ],
            "differences": [
                {
                    "pair": pair.label,
                    "value": (found := pair.differences[figure]).value,
                    "low": found.interval.low,
                    "high": found.interval.high,
                    "clear": found.clear,
                }
                for pair in compared.pairs
            ],
        }
        for figure in compared.headline
    ]


def _bounds(folder: Path, metric: str) -> dict[str, float]:
    metrics = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
    return {end: metrics[name] for end in ("low", "high") if (name := bound(metric, end)) in metrics}
