"""Runs an ablation on this machine with kfp's own local runner, in one folder a run.

<folder>/log.txt        what the stages say; kfp.log has everything, kfp's own lines too
<folder>/artifacts/     kfp's pipeline root: <pipeline>-<time>/[<loop>-iteration-<n>/]<stage>/<artifact>
<folder>/report/        the report, and what else the stage aggregate leaves
<folder>/summary.json   what `rest ablate` shows at the end
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pipelines.ablation_pipeline import build
from pipelines.local import ARTIFACTS, carry_out, processes, refuse_python3, run_folder
from pipelines.monitor import Monitor
from pipelines.progress import duration, show_done, show_start
from pipelines.resume import RunRecord, Trials
from pipelines.secrets import in_environment
from pipelines.summary import RunStatus, in_spools
from rest_core.ablation.ablation_report import HTML_FILE, JSON_FILE
from rest_core.ablation.compare import Comparison
from rest_core.ablation.settings import Trial, trials
from rest_core.config import Config
from rest_core.operations.catalogue import in_parts
from rest_core.operations.preflight.sources import require_local, require_space
from rest_core.operations.tracking import store
from rest_core.operations.tracking.runs import new_pipeline_run

REPORT_FOLDER = "report"


@dataclass(frozen=True)
class AblationSummary:
    run: str  # the pipeline run's name in MLflow
    status: RunStatus
    seconds: float
    peak_rss_mib: float  # of the runner and all its processes together, at the worst moment
    stages: Mapping[str, float]  # seconds by stage, those that were started
    folder: str
    mlflow: str  # where to look
    unsent: int  # tracking records that MLflow has not got
    sync: str  # the command that sends them

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return Path(self.folder) / REPORT_FOLDER


def run_ablation(
    config: Config, settings: Trials, *, folder: Path, console: Console, resumed: RunRecord | None = None
) -> AblationSummary:
    """Run all trials in `folder` and compare them.

    Args:
        config: the whole configuration.
        settings: what is trained and compared; kfp.local runs no more than two trials at the same time.
        folder: must not exist or be empty, but for a run that is resumed.
        console: gets a line at the start and at the end of each stage.
        resumed: what the run was started with that this one resumes, in its folder.

    Raises:
        UserError: the folder is in use, the schemes do not go together, or a stage refused its input.
        Preempted: a stage was asked to stop.
        StageFailed: a stage failed otherwise.
    """
    config = in_environment(config)
    require_local(config)
    schemes, seeds = settings.schemes, settings.seeds
    pipeline = build(config, schemes=schemes, seeds=seeds, ablation=settings.ablation, parallelism=settings.parallelism)
    every = trials(schemes, seeds)
    if resumed is None:
        require_space(config, folder.absolute(), trainings=len(every))
    refuse_python3(str(folder.absolute()), config.model_dump_json(), *(trial.model_dump_json() for trial in every))
    run = resumed.run if resumed else new_pipeline_run(config.profile, f"ablation of {len(schemes)} schemes")
    record = RunRecord(run=run, runner="subprocess", config=config.model_dump(mode="json"), trials=settings)
    once = [stage.name for stage in in_parts("shared", "ablation")]
    in_loop = [f"{stage.name} · {trial.label}" for trial in every for stage in in_parts("trial")]
    with run_folder(folder, config, record, console, resumed=resumed is not None) as folder:
        monitor = Monitor(
            folder / ARTIFACTS,
            name=lambda task: stage_name(task, every),
            on_start=partial(show_start, console, of=len(once) + len(in_loop)),
            on_done=partial(show_done, console, config),
        )
        summary = carry_out(
            partial(pipeline, pipeline_run=run),
            partial(_summarize, config, folder, monitor, run),
            stages=[*once, *in_loop],
            config=config,
            folder=folder,
            run=run,
            monitor=monitor,
            execution=processes(),
            resumed=resumed is not None,
        )
        shutil.copytree(monitor.stages["aggregate"].folder / "report", summary.report, dirs_exist_ok=True)
    return summary


def stage_name(task: Path, every: Sequence[Trial]) -> str:
    """The name of a stage by its task's folder: with its trial where it is in the loop."""
    iteration = re.search(r"-iteration-(\d+)$", task.parent.name)
    return task.name if iteration is None else f"{task.name} · {every[int(iteration[1])].label}"


def show(summary: AblationSummary, console: Console) -> None:
    """Print the deciding figure by scheme, what must be known before it, and where the report and MLflow are."""
    report = json.loads((summary.report / JSON_FILE).read_text(encoding="utf-8"))
    settings, comparisons = report["settings"], report["comparisons"]
    deciding = [settings["metric"]] if settings["metric"] in comparisons else list(comparisons)
    for metric in deciding:
        console.print(_table(TypeAdapter(Comparison).validate_python(comparisons[metric]), settings))
    for note in report["notes"]:
        console.print(f"[bold yellow]![/] {escape(note)}", soft_wrap=True)
    console.print(
        f"{summary.status} after {duration(summary.seconds)}, at most {summary.peak_rss_mib / 1024:.1f} GiB of memory"
    )
    console.print(f"Report: {escape(str(summary.report / HTML_FILE))}", soft_wrap=True)
    console.print(f"MLflow: {summary.mlflow}", soft_wrap=True)
    if summary.unsent:
        what = f"[bold yellow]MLflow has not got {summary.unsent} records:[/]"
        console.print(f"{what} {escape(summary.sync)}", soft_wrap=True)


def _table(comparison: Comparison, settings: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=comparison.metric, title_justify="left", padding=(0, 1, 0, 0))
    interval = f"{settings['confidence']:.0%} interval"
    for heading in ("scheme", "seeds", "mean", interval, f"minus {settings['baseline']}", interval):
        table.add_column(heading, no_wrap=True, justify="left" if heading == "scheme" else "right")
    for name in comparison.ordered(settings["baseline"]):
        table.add_row(*comparison.row(name))
    return table


def _summarize(
    config: Config, folder: Path, monitor: Monitor, run: str, *, status: RunStatus, seconds: float
) -> AblationSummary:
    uri = store.resolve_uri(config.tracking)
    ids, unsent = in_spools(folder)
    look = (uri, ids[0].experiment, ids[0].root or ids[0].pipeline) if ids else (uri,)
    return AblationSummary(
        run=run,
        status=status,
        seconds=seconds,
        peak_rss_mib=monitor.peak_rss_mib,
        stages={name: stage.seconds for name, stage in monitor.stages.items()},
        folder=str(folder),
        mlflow=store.where_to_look(*look),
        unsent=unsent,
        sync=store.sync_command(folder, uri),
    )
