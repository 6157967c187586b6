"""The end of a local run: what each stage did, measured and cost, as JSON and for people."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from pipelines.monitor import Monitor, StageRun
from pipelines.progress import duration, work_of
from pipelines.run_log import LOG_FILE, warnings_in
from rest_core.config import Config, GateConfig, RegistryConfig
from rest_core.data.prepare import REPORT, describe_drops
from rest_core.evaluation import gate
from rest_core.operations.catalogue import CATALOGUE, PIPELINE
from rest_core.operations.catalogue_entry import Stage, bound
from rest_core.operations.result import OVERVIEW_FILE, REGISTERED_FILE
from rest_core.operations.tracking import journal, store
from rest_core.processes import rest_command

REPORT_FILE = "report.html"

RunStatus = Literal["succeeded", "failed", "interrupted"]
StageStatus = Literal["done", "off", "skipped", "failed", "interrupted", "not run"]

_MARKS = {
    "done": "[green]✓[/]",
    "off": "-",
    "skipped": "[yellow]![/]",
    "failed": "[red]✗[/]",
    "interrupted": "[red]✗[/]",
    "not run": "",
}


@dataclass(frozen=True)
class StageSummary:
    name: str
    status: StageStatus
    note: str | None = None  # why it is off or was skipped
    seconds: float = 0.0
    peak_rss_mib: float = 0.0
    metrics: Mapping[str, float] | None = None
    folder: str | None = None
    mlflow: str | None = None  # link to its run
    drops: tuple[str, ...] = ()  # why records of the data were dropped, in lines


@dataclass(frozen=True)
class Summary:
    run: str  # the pipeline run's name in MLflow
    profile: str
    status: RunStatus
    seconds: float
    peak_rss_mib: float  # of the runner and all its processes together, at the worst moment
    stages: tuple[StageSummary, ...]
    folder: str
    mlflow: str  # where to look
    unsent: int  # tracking records that MLflow has not got
    comparison: tuple[Mapping[str, Any], ...] = ()  # of the policies, as compare-policies has left it
    registered: Mapping[str, Any] | None = None  # the version, and what the gate says, as compare-and-register left it
    options: tuple[str, ...] = ()  # with which commands use the same MLflow
    gate_options: tuple[str, ...] = ()  # with which `rest promote` judges by the same gate
    warnings: Mapping[str, Sequence[str]] = field(default_factory=dict)  # each with the stages that gave it


def summarize(
    config: Config, folder: Path, monitor: Monitor, *, run: str, status: RunStatus, seconds: float
) -> Summary:
    """Gather what the stages of a run have left in its folder."""
    uri = store.resolve_uri(config.tracking)
    parents, unsent = in_spools(folder)
    log = folder / LOG_FILE
    return Summary(
        run=run,
        profile=config.profile,
        status=status,
        seconds=seconds,
        peak_rss_mib=monitor.peak_rss_mib,
        stages=tuple(_stage_summary(stage, config, monitor.stages.get(stage.name), status, uri) for stage in PIPELINE),
        folder=str(folder),
        mlflow=store.where_to_look(uri, parents[0].experiment, parents[0].pipeline)
        if parents
        else store.where_to_look(uri),
        unsent=unsent,
        comparison=tuple(_left(monitor.stages.get("compare-policies"), OVERVIEW_FILE) or ()),
        registered=_left(monitor.stages.get("compare-and-register"), REGISTERED_FILE),
        options=tuple(store.options_for(uri)),
        gate_options=tuple(_gate_options(config)),
        warnings=warnings_in(log.read_text(encoding="utf-8", errors="replace")) if log.is_file() else {},
    )


def _left(run: StageRun | None, file: str) -> Any:
    """What a stage has left in a JSON file of its output; None where it has left none."""
    found = [] if run is None else list(run.folder.glob(f"*/{file}"))
    return json.loads(found[0].read_text(encoding="utf-8")) if found else None


def in_spools(folder: Path) -> tuple[list[journal.RunIds], int]:
    """Of a run's folder: which runs in MLflow its stages have recorded in, and how many records MLflow has not got."""
    states = [journal.State.read(path) for path in journal.find(folder)]
    return [state.ids for state in states if state.ids is not None], journal.unsent(folder)


def _stage_summary(stage: Stage, config: Config, run: StageRun | None, outcome: RunStatus, uri: str) -> StageSummary:
    name = stage.name
    if run is None:
        return StageSummary(name, "not run")
    status: StageStatus = "interrupted" if outcome == "interrupted" else "failed"
    note = None
    if run.done:
        status, note = work_of(run.folder, config)
    drops: list[str] = []
    if name == "prepare-data":
        for report in run.folder.glob(f"*/{REPORT}"):
            drops = describe_drops(json.loads(report.read_text(encoding="utf-8")))
    figures = run.folder / "metrics"
    runs = [ids for ids in in_spools(run.folder)[0] if ids.run != ids.pipeline]
    return StageSummary(
        name,
        status,
        note,
        run.seconds,
        run.peak_rss_mib,
        json.loads(figures.read_text(encoding="utf-8")) if figures.is_file() else None,
        str(run.folder),
        store.where_to_look(uri, runs[0].experiment, runs[0].run) if runs else None,
        tuple(drops),
    )


def show(summary: Summary, console: Console) -> None:
    """Print the table of stages, the cost, the reward line, what was skipped, and where to look."""
    table = Table(box=box.SIMPLE_HEAD, title=escape(summary.run), title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    table.add_column("stage", no_wrap=True)
    table.add_column("time", no_wrap=True, justify="right")
    table.add_column("main figures")
    table.add_column("MLflow", no_wrap=True)
    for stage in summary.stages:
        time = duration(stage.seconds) if stage.seconds else ""
        table.add_row(_MARKS[stage.status], stage.name, time, figures(stage), _run_link(stage.mlflow))
    console.print(table)
    tell = partial(console.print, soft_wrap=True)
    tell(f"{summary.status} after {duration(summary.seconds)}, at most {summary.peak_rss_mib / 1024:.1f} GiB of memory")
    for table in comparison_tables(summary.comparison):
        console.print(table)
    tell(reward_line(summary))
    if summary.registered is not None:
        console.print(gate.table(summary.registered["conditions"]))
    skipped: dict[str, list[str]] = {}
    for stage in summary.stages:
        if stage.status == "skipped":
            skipped.setdefault(stage.note or "", []).append(stage.name)
        for line in stage.drops:
            tell(escape(line), highlight=False)
    for note, names in skipped.items():
        tell(f"[bold yellow]SKIPPED {', '.join(names)}:[/] {escape(note)}")
    for text, stages in summary.warnings.items():
        tell(f"[yellow]Warning, {', '.join(stages)}:[/] {escape(text)}")
    tell(f"MLflow: {summary.mlflow}")
    tell(f"Files:  {escape(summary.folder)}")
    if (report := Path(summary.folder) / REPORT_FILE).is_file():
        tell(f"Report: {escape(str(report))}")
    for command, purpose in next_steps(summary):
        tell(f"Next:   [bold]{escape(command)}[/]  {escape(purpose)}")
    if summary.unsent:
        command = shlex.join(["rest", "sync", summary.folder, *summary.options])
        tell(f"[bold yellow]MLflow has not got {summary.unsent} records:[/] {escape(command)}")


def next_steps(summary: Summary) -> Iterator[tuple[str, str]]:
    """Commands that go on from a run, as they are typed in the working directory, and what each is for."""
    made = summary.registered
    if made is None:
        return
    passed = all(one["met"] for one in made["conditions"])
    promote = "make it the champion" if passed else "what it lacks to become champion"
    name, version = made["name"], str(made["version"])
    tools = ["--tools", "docs/examples/tools.py"] if Path("docs/examples/tools.py").is_file() else []
    commands = {
        "promote": (["promote", *([] if passed else ["--dry-run"]), *summary.options, *summary.gate_options], promote),
        "chat": (["chat", f"{name}@{version}", *tools, *summary.options], f"talk to version {version}"),
    }
    for arguments, purpose in commands.values():
        yield shlex.join([rest_command(), *arguments]), f"({purpose})"


def _gate_options(config: Config) -> Iterator[str]:
    if config.registry.name != RegistryConfig().name:
        yield from ("--set", f"registry.name={config.registry.name}")
    usual = GateConfig()
    for name, value in config.gate:
        if value != getattr(usual, name) and name != "webhook":
            yield from ("--set", f"gate.{name}={value if isinstance(value, str) else json.dumps(value)}")


def comparison_tables(rows: Sequence[Mapping[str, Any]]) -> Iterator[Table]:
    """The policies below each other, a column a figure; a table a benchmark and set of policies."""

    def kind(row: Mapping[str, Any]) -> tuple[str, ...]:
        return (row["figure"].partition("/")[0], *(one["policy"] for one in row["policies"]))

    for (benchmark, *_), group in groupby(rows, key=kind):
        figures = list(group)
        names = [one["policy"] for one in figures[0]["policies"]] + [one["pair"] for one in figures[0]["differences"]]
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column(benchmark, no_wrap=True, min_width=max(map(len, names)))  # in a narrow terminal, too
        for row in figures:
            table.add_column(row["figure"].partition("/")[2].replace("_", " "), overflow="fold")
        for parts in zip(*(row["policies"] for row in figures), strict=True):
            table.add_row(parts[0]["policy"], *(f"{one['value']:.1%}{_interval(one, '.1%')}" for one in parts))
        table.add_section()
        for parts in zip(*(row["differences"] for row in figures), strict=True):
            table.add_row(parts[0]["pair"], *map(_difference, parts))
        yield table


def _difference(one: Mapping[str, Any]) -> Text:
    colour = ("green" if one["value"] > 0 else "red") if one["clear"] else ""
    return Text(f"{one['value']:+.1%}{_interval(one, '+.1%')}", style=colour)


def _interval(one: Mapping[str, Any], spec: str) -> str:
    return f" ({one['low']:{spec}} to {one['high']:{spec}})" if "low" in one and "high" in one else ""


def figures(stage: StageSummary) -> str:
    """The main figures of a stage in one line; why there are none for a stage that is off or was skipped."""
    if stage.status in ("off", "skipped"):
        return f"{stage.status}, see below" if stage.status == "skipped" else "off"
    metrics = {name: value for name, value in (stage.metrics or {}).items() if not name.startswith("stage/")}
    main = [figure.shown(metrics) for figure in CATALOGUE[stage.name].figures if figure.metric in metrics]
    return ", ".join(main or [f"{name} {value:.3g}" for name, value in islice(metrics.items(), 3)])


def reward_line(summary: Summary) -> str:
    """Whether training has raised the reward, with the numbers; a 95 % interval that holds 0 decides nothing."""
    metrics = next(stage.metrics or {} for stage in summary.stages if stage.name == "rest-rl")
    if "reward/change" not in metrics:
        return "Reward before and after training: not measured"
    change = metrics["reward/change"]
    interval, verdict = "", "[yellow]no clear change[/]"
    if (low := metrics.get(bound("reward/change", "low"))) is not None:
        high = metrics[bound("reward/change", "high")]
        interval = f" ({low:+.3f} to {high:+.3f})"
        verdict = "[green]higher[/]" if low > 0 else "[bold yellow]LOWER[/]" if high < 0 else verdict
    prompts = next(
        f"{metrics[name]:.0f} {title}"
        for name, title in (("reward/held_out_prompts", "held-out"), ("reward/training_prompts", "training"))
        if name in metrics
    )
    numbers = f"{metrics['reward/before']:+.3f} before, {metrics['reward/after']:+.3f} after"
    return f"Reward on {prompts} prompts: {numbers}, {change:+.3f}{interval}: {verdict}"


def _run_link(link: str | None) -> str:
    """The start of the run's id, linked to its page where the terminal can."""
    if link is None:
        return ""
    run_id, page = link.rsplit("/", 1)[-1][:8], link[link.index("http") :]
    return f"[link={page}]{run_id}[/link]"
