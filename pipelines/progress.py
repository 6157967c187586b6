"""What `rest run` and `rest ablate` say while they run: what runs and where, and when each stage starts and ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

from pipelines.monitor import StageRun
from rest_core import manifest
from rest_core.config import Config
from rest_core.disk import read_file
from rest_core.operations.catalogue import CATALOGUE

SUMMARY_FILE = "summary.json"


def show_header(console: Console, config: Config, folder: Path, run: str) -> None:
    """Say what is run, on what, where it goes, and how long it has taken before."""
    sources = ", ".join(source.location for source in config.data.sources)
    steps = []
    if config.sft.enabled:
        steps.append("a warm-up")
    if config.rl.enabled:
        rl = config.rl
        steps.append(f"{rl.steps} RL steps of {rl.prompts_per_step} prompts × {rl.group_size} ({rl.weights.scheme})")
    lines = {"model": config.model.source, "data": sources, "training": ", ".join(steps) or "none", "folder": folder}
    if (before := _time_before(folder, config.profile)) is not None:
        lines["time"] = f"the last run of this profile took {duration(before)}"
    console.print(f"[bold]{escape(run)}[/]")
    for name, text in lines.items():
        console.print(f"  {name:9} {escape(str(text))}", soft_wrap=True)


def show_start(console: Console, stage: StageRun, number: int, of: int) -> None:
    """Say that a stage has started."""
    console.print(f"[bold]▶ {stage.name}[/] ({number} of {of})")


def show_done(console: Console, config: Config, stage: StageRun) -> None:
    """Say that a stage has ended, what it cost, and whether it has done its work."""
    status, why = work_of(stage.folder, config)
    if status == "done":
        cost = f"{duration(stage.seconds)}, {stage.peak_rss_mib / 1024:.1f} GiB"
        console.print(f"[green]✓[/] {stage.name}  {cost}")
    elif status == "off":
        console.print(f"- {stage.name}  off")
    else:
        console.print(f"[yellow]![/] {stage.name}  skipped: {escape(why or '')}", soft_wrap=True)


def work_of(task: Path, config: Config) -> tuple[Literal["done", "off", "skipped"], str | None]:
    """Whether a stage that has ended has done its work, and else why not.

    Args:
        task: its folder, which has its name.
        config: of the run; what it does not switch off is skipped for want of something.
    """
    for made in task.glob(f"*/{manifest.FILE_NAME}"):
        counts = manifest.read(made.parent)["counts"]
        if (why := counts.get("skipped")) is not None:
            expected = counts.get("quiet", False) or not CATALOGUE[task.name].enabled(config)
            return "off" if expected else "skipped", str(why)
    return "done", None


def duration(seconds: float) -> str:
    """Seconds as people say them: `42 s`, `3 min 05 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02} s"


def _time_before(folder: Path, profile: str) -> float | None:
    """Seconds that the newest whole run of a profile beside this one has taken."""
    found: list[tuple[float, float]] = []
    for path in folder.parent.glob(f"*/{SUMMARY_FILE}"):
        try:
            summary = json.loads(read_file(path))
            if (summary["profile"], summary["status"]) == (profile, "succeeded"):
                found.append((path.stat().st_mtime, float(summary["seconds"])))
        except (OSError, ValueError, LookupError, TypeError, RecursionError):  # of another program, or damaged
            continue
    return max(found)[1] if found else None
