"""Runs the pipeline on this machine with kfp's own local runners, in one folder a run.

<folder>/log.txt        everything that kfp and the stages say
<folder>/artifacts/     kfp's pipeline root: <pipeline>-<time>/<stage>/<artifact>
<folder>/summary.json   what `rest run` shows at the end
<folder>/pipeline.yaml  the compiled pipeline, for `rest lineage`
<folder>/model          link to the trained checkpoint, once there is one
<folder>/../latest      link to the newest folder
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

import psutil
from kfp import local
from rich.console import Console

from pipelines.graph import compile_to
from pipelines.monitor import Monitor, StageRun, family
from pipelines.rest_pipeline import build
from pipelines.summary import RunStatus, Summary, duration, summarize
from rest_core.config import Config
from rest_core.disk import disk_errors
from rest_core.errors import UserError, needs_extra
from rest_core.operations.catalogue import CATALOGUE, PIPELINE
from rest_core.operations.preflight.sources import require_local
from rest_core.operations.result import raise_error
from rest_core.operations.tracking.delivery import deliver
from rest_core.operations.tracking.runs import PIPELINE_VARIABLE, finish_pipeline, new_pipeline_run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

LOG_FILE = "log.txt"
ARTIFACTS = "artifacts"
SUMMARY_FILE = "summary.json"
MODEL_LINK = "model"
PIPELINE_FILE = "pipeline.yaml"
_LOG_TAIL_LINES = 15
_SECONDS_TO_END = 30  # a training writes a checkpoint first (rl.grace_seconds)


class StageFailed(Exception):
    """A stage ended by a defect, not by its input; the message holds the end of its log."""


@dataclass(frozen=True)
class Execution:
    """kfp's runner, and what it leaves to us: to see what its stages take, and to end them."""

    runner: local.SubprocessRunner | local.DockerRunner
    end: Callable[[], None]
    memory_elsewhere: Callable[[], int] | None = None  # bytes, as `Monitor` wants them


def run_local(
    config: Config, *, folder: Path, console: Console, runner: Literal["subprocess", "docker"] = "subprocess"
) -> Summary:
    """Run all stages in `folder`; progress bars go to the terminal that stderr is, where it is one.

    Args:
        config: the whole configuration.
        folder: must not exist or be empty.
        console: gets a line at the start and at the end of each stage.
        runner: each stage a process of this environment, or a container (`pipelines.containers`).

    Raises:
        UserError: the folder is in use, a stage refused its input (in its own words), or no engine runs containers.
        Preempted: a stage was asked to stop; it can resume from its folder (`rest train --out`).
        StageFailed: a stage failed otherwise.
    """
    require_local(config)
    pipeline = build(config)
    run = new_pipeline_run(config.profile, config.rl.weights.scheme)
    if runner == "subprocess":
        refuse_python3(str(folder.absolute()), config.model_dump_json())
        folder, execution = new_folder(folder), processes()
    else:
        folder, execution = _containers(folder, config, run)
    monitor = Monitor(
        folder / ARTIFACTS,
        on_start=partial(_tell_start, console),
        on_done=partial(_tell_done, console),
        memory_elsewhere=execution.memory_elsewhere,
    )
    _link(folder.parent / "latest", Path(folder.name))
    compile_to(folder / PIPELINE_FILE, pipeline)
    os.environ[PIPELINE_VARIABLE] = str(folder / PIPELINE_FILE)
    summary = carry_out(
        partial(pipeline, pipeline_run=run),
        partial(summarize, config, folder, monitor, run=run),
        stages=[stage.name for stage in PIPELINE],
        config=config,
        folder=folder,
        run=run,
        monitor=monitor,
        execution=execution,
    )
    trained = monitor.stages["rest-rl"].folder / CATALOGUE["rest-rl"].output
    _link(folder / MODEL_LINK, trained.relative_to(folder))
    return summary


def carry_out(
    pipeline: Callable[[], Any],
    summarize: Callable[..., S],
    *,
    stages: Sequence[str],
    config: Config,
    folder: Path,
    run: str,
    monitor: Monitor,
    execution: Execution,
) -> S:
    """Run a pipeline in its folder; however it ends, its run in MLflow is ended and its summary left in the folder.

    Args:
        pipeline: starts it and waits for its end.
        summarize: makes the summary, a dataclass, of the keywords `status` and `seconds`.
        stages: names of all its stages, as the monitor has them.
        config, folder, run, monitor, execution: of the run.

    Raises:
        UserError, Preempted, StageFailed: see `explain`.
    """
    started = time.monotonic()
    status: RunStatus = "interrupted"
    failure: RuntimeError | None = None
    try:
        with session(folder, monitor, execution):
            pipeline()
        if undone := [name for name in stages if name not in monitor.stages or not monitor.stages[name].done]:
            # A container that is removed before kfp.local asks for its exit code counts as one that succeeded.
            raise RuntimeError(f"{undone[0]} has left no outputs")
        status = "succeeded"
    except RuntimeError as error:  # what kfp.local raises when a task has failed
        status, failure = "failed", error
    finally:
        _close_run(config, folder, run, monitor, status)
        summary = summarize(status=status, seconds=time.monotonic() - started)
        (folder / SUMMARY_FILE).write_text(json.dumps(asdict(summary), indent=2) + "\n", encoding="utf-8")
    if failure is not None:
        explain(folder, monitor, failure)
    return summary


def _close_run(config: Config, folder: Path, run: str, monitor: Monitor, status: RunStatus) -> None:
    """End the run in MLflow that no stage has ended: it was left between two of them, or one was killed whole."""
    if status != "succeeded" and monitor.stages:
        as_what: Literal["FAILED", "KILLED"] = "FAILED" if status == "failed" else "KILLED"
        finish_pipeline(config.tracking, pipeline_run=run, spool=folder / "finish.tracking", status=as_what)
        deliver(folder)  # ends the run of a stage that was killed


def _link(link: Path, target: Path) -> None:
    """Make or replace a symbolic link; a file or folder that has its name stays."""
    if link.is_symlink() or not link.exists():
        aside = link.with_name(f".{link.name}-{os.getpid()}")
        aside.symlink_to(target)
        aside.replace(link)


def new_folder(folder: Path) -> Path:
    """Make the folder of a local run; the absolute path.

    Raises:
        UserError: it holds something already.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already holds something; give another --output")
    with disk_errors(folder):
        (folder / ARTIFACTS).mkdir(parents=True)
    return folder


def processes() -> Execution:
    """Each stage a process of this environment."""
    return Execution(local.SubprocessRunner(use_venv=False), end=_end_children)


def _containers(folder: Path, config: Config, run: str) -> tuple[Path, Execution]:
    with needs_extra("cluster"):
        from pipelines import containers

    client = containers.connect()
    folder = new_folder(folder)
    return folder, Execution(
        containers.runner(client, config, run=run, root=folder / ARTIFACTS),
        end=partial(containers.stop, client, run, seconds=_SECONDS_TO_END),
        memory_elsewhere=partial(containers.memory, client, run),
    )


@contextlib.contextmanager
def session(folder: Path, monitor: Monitor, execution: Execution) -> Iterator[None]:
    """kfp.local set up to run a pipeline in `folder`; raises RuntimeError where a task of it has failed."""
    with _ending_with_us(execution.end), _terminal_as_stdin(), _stdout_to(folder / LOG_FILE), monitor:
        local.init(execution.runner, pipeline_root=str(folder / ARTIFACTS))
        yield


def explain(folder: Path, monitor: Monitor, failure: RuntimeError) -> NoReturn:
    """Raise what went wrong, in the words of the stage where it has left any."""
    log = folder / LOG_FILE
    words, where = log.read_text(encoding="utf-8", errors="replace"), f"the whole log: {log}"
    # The first that is not done: what ran after it, where kfp.local went on, has failed for want of its outputs.
    for stage in [one for one in monitor.stages.values() if not one.done][:1]:
        words = _part_of(words, stage.folder)
        where = f"{stage.name} has failed; {where}"
        for out in stage.folder.glob("*/"):
            raise_error(out, f"{stage.name}: ")
    tail = words.rstrip().splitlines()[-_LOG_TAIL_LINES:]
    raise StageFailed("\n".join([*tail, where])) from failure


def _part_of(log: str, folder: Path) -> str:
    """What kfp.local's log says of the task of a folder; the whole log where it says nothing.

    In a loop each round has a task of that name; the paths of the outputs distinguish them, where the log has them.
    """
    parts = re.split(r"^(?=.*Executing task )", log, flags=re.MULTILINE)
    named = [part for part in parts if f"'{folder.name}'" in part.partition("\n")[0]]
    own = f"/{folder.parent.name}/{folder.name}/"
    return next((part for part in named if own in part), named[0] if named else log)


def _tell_start(console: Console, stage: StageRun, number: int) -> None:
    console.print(f"[bold]▶ {stage.name}[/] ({number} of {len(PIPELINE)})")


def _tell_done(console: Console, stage: StageRun) -> None:
    console.print(done_line(stage))


def done_line(stage: StageRun) -> str:
    """What is said when a stage has ended."""
    return f"[green]✓[/] {stage.name}  {duration(stage.seconds)}, {stage.peak_rss_mib / 1024:.1f} GiB"


def refuse_python3(*texts: str) -> None:
    """kfp.local puts the interpreter's path in place of every "python3" among a task's arguments, paths included."""
    for text in texts:
        found = text.find("python3")
        if found >= 0:
            part = text[max(0, found - 30) : found + 30]
            raise UserError(f"'python3' in a path or a value breaks kfp's local runner: …{part}…; rename it")


@contextlib.contextmanager
def _stdout_to(path: Path) -> Iterator[None]:
    """kfp.local logs and relays its tasks' output to sys.stdout: keep that in a file."""
    with (
        path.open("w", encoding="utf-8", buffering=1) as log,
        contextlib.redirect_stdout(log),
        warnings.catch_warnings(),
    ):
        # It doubts every image without "python" in its name.
        warnings.filterwarnings("ignore", message=".*custom or non-Python base image", category=RuntimeWarning)
        yield


@contextlib.contextmanager
def _terminal_as_stdin() -> Iterator[None]:
    """Hand stderr's terminal to the stages as their stdin, the one stream that kfp.local leaves alone; else nothing.

    `components.runtime` draws progress bars there.
    """
    kept, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(2 if sys.stderr.isatty() else nothing, 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(nothing)
        os.close(kept)


@contextlib.contextmanager
def _ending_with_us(end: Callable[[], None]) -> Iterator[None]:
    """When the block is left, by SIGINT or SIGTERM too, end what was started in it."""
    leaving, left = threading.Event(), threading.Event()

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        leaving.set()
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)

    def end_what_is_started() -> None:
        # kfp.local waits for its task before it lets an exception pass, and in a loop starts all that is left.
        leaving.wait()
        while not left.wait(0.1):
            end()

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    thread = threading.Thread(target=end_what_is_started, name="end-stages", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        leaving.set()
        thread.join()
        end()
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_children() -> None:
    _, *children = family()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.terminate()
    # Looked at, not waited for: who waits takes the exit code, and kfp.local takes a task without one as a success.
    deadline = time.monotonic() + _SECONDS_TO_END
    while (alive := [child for child in children if _runs(child)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
