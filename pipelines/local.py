"""Runs the pipeline on this machine with kfp's own local runners, in one folder a run.

<folder>/log.txt        what the stages say; kfp.log has everything, kfp's own lines too
<folder>/artifacts/     kfp's pipeline root: <pipeline>-<time>/<stage>/<artifact>
<folder>/summary.json   what `rest run` shows at the end
<folder>/pipeline.yaml  the compiled pipeline, for `rest lineage`
<folder>/run.json       what the run was started with, for `rest run --resume` (`pipelines.resume`)
<folder>/run.tracking/  as long as it runs, or where it was left: the record that ends it in MLflow (`rest sync`)
<folder>/report.html    base model, warm-up and trained policy compared, where two of them were evaluated
<folder>/model          link to the trained checkpoint, once there is one
<folder>/../latest      link to the newest folder
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
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
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import psutil
from kfp import local
from kfp.dsl.graph_component import GraphComponent
from rich.console import Console

from components.runtime import ROOT_VARIABLE, UNFINISHED
from pipelines import parent_run
from pipelines.graph import compile_to
from pipelines.monitor import Monitor, family
from pipelines.progress import SUMMARY_FILE, show_done, show_header, show_start
from pipelines.rest_pipeline import build
from pipelines.resume import CACHE, Runner, RunRecord, held, set_unfinished_aside
from pipelines.run_log import KFP_LOG_FILE, LOG_FILE, RunLog
from pipelines.secrets import in_environment
from pipelines.summary import REPORT_FILE, RunStatus, Summary, summarize
from rest_core.config import Config
from rest_core.disk import disk_errors, write_file
from rest_core.errors import UserError, needs_extra
from rest_core.evaluation.comparison_report import HTML_FILE
from rest_core.operations.catalogue import CATALOGUE, PIPELINE
from rest_core.operations.preflight.sources import require_local, require_space
from rest_core.operations.result import raise_error
from rest_core.operations.tracking import journal
from rest_core.operations.tracking.runs import PIPELINE_VARIABLE, new_pipeline_run

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")

ARTIFACTS = "artifacts"
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
    config: Config, *, folder: Path, console: Console, runner: Runner = "subprocess", resumed: RunRecord | None = None
) -> Summary:
    """Run all stages in `folder`; progress bars go to the terminal that stderr is, where it is one.

    Args:
        config: the whole configuration.
        folder: must not exist or be empty, but for a run that is resumed.
        console: gets a line at the start and at the end of each stage.
        resumed: what the run was started with that this one resumes, in its folder.
        runner: each stage a process of this environment, or a container (`pipelines.containers`).

    Raises:
        UserError: the folder is in use, a stage refused its input (in its own words), or no engine runs containers.
        Preempted: a stage was asked to stop; the run can be resumed in its folder.
        StageFailed: a stage failed otherwise.
    """
    config = in_environment(config)
    require_local(config)
    if resumed is None:
        require_space(config, folder.absolute())
    pipeline = build(config)
    run = resumed.run if resumed else new_pipeline_run(config.profile, config.rl.weights.scheme)
    in_containers = _containers(config, run) if runner == "docker" else None
    if in_containers is None:
        refuse_python3(str(folder.absolute()), config.model_dump_json())
    record = RunRecord(run=run, runner=runner, config=config.model_dump(mode="json"))
    with run_folder(folder, config, record, console, resumed=resumed is not None) as folder:
        execution = processes() if in_containers is None else in_containers(folder / ARTIFACTS)
        monitor = Monitor(
            folder / ARTIFACTS,
            on_start=partial(show_start, console, of=len(PIPELINE)),
            on_done=partial(show_done, console, config),
            memory_elsewhere=execution.memory_elsewhere,
        )
        os.environ[PIPELINE_VARIABLE] = str(_compiled(folder, pipeline))
        summary = carry_out(
            partial(pipeline, pipeline_run=run),
            partial(summarize, config, folder, monitor, run=run),
            stages=[stage.name for stage in PIPELINE],
            config=config,
            folder=folder,
            run=run,
            monitor=monitor,
            execution=execution,
            resumed=resumed is not None,
        )
    trained = monitor.stages["rest-rl"].folder / CATALOGUE["rest-rl"].output
    _link(folder / MODEL_LINK, trained.relative_to(folder))
    compared = monitor.stages["compare-policies"].folder / CATALOGUE["compare-policies"].output / HTML_FILE
    if compared.is_file():  # it needs two policies
        shutil.copyfile(compared, folder / REPORT_FILE)
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
    resumed: bool = False,
) -> S:
    """Run a pipeline in its folder; however it ends, its run in MLflow is ended and its summary left in the folder.

    Args:
        pipeline: starts it and waits for its end.
        summarize: makes the summary, a dataclass, of the keywords `status` and `seconds`.
        stages: names of all its stages, as the monitor has them.
        config, folder, run, monitor, execution, resumed: of the run.

    Raises:
        UserError, Preempted, StageFailed: see `explain`.
    """
    started = time.monotonic()
    status: RunStatus = "interrupted"
    failure: RuntimeError | None = None
    parent = parent_run.begin(config.tracking, folder / ARTIFACTS, run, resumed=resumed)
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
        parent_run.end(parent, config.tracking, folder / ARTIFACTS, status if monitor.stages or resumed else None)
        summary = summarize(status=status, seconds=time.monotonic() - started)
        write_file(folder / SUMMARY_FILE, json.dumps(asdict(summary), indent=2) + "\n")
    if failure is not None:
        explain(folder, monitor, failure)
    return summary


def _link(link: Path, target: Path) -> None:
    """Make or replace a symbolic link; a file or folder that has its name stays."""
    if link.is_symlink() or not link.exists():
        aside = link.with_name(f".{link.name}-{os.getpid()}")
        aside.symlink_to(target)
        aside.replace(link)


@contextlib.contextmanager
def run_folder(folder: Path, config: Config, record: RunRecord, console: Console, *, resumed: bool) -> Iterator[Path]:
    """The folder of a local run, made or made ready for another attempt, as an absolute path, and held.

    Raises:
        UserError: it is in use, or holds something already.
    """
    folder = folder.absolute() if resumed else new_folder(folder)
    with held(folder, folder / ARTIFACTS):
        record.write(folder)
        _link(folder.parent / "latest", Path(folder.name))
        show_header(console, config, folder, record.run)
        if resumed:
            done = set_unfinished_aside(folder / ARTIFACTS)
            console.print(f"  resumed   done before: {', '.join(done) or 'nothing'}", soft_wrap=True)
        yield folder
        unfinished = folder / ARTIFACTS / UNFINISHED  # what is left of what was taken up
        if not journal.unsent(unfinished):
            shutil.rmtree(unfinished, ignore_errors=True)


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


def _compiled(folder: Path, pipeline: GraphComponent) -> Path:
    """The compiled pipeline in a run's folder; one that differs from an earlier attempt's is a further file."""
    number, path = 1, folder / PIPELINE_FILE
    new = folder / f".{PIPELINE_FILE}"
    compile_to(new, pipeline)
    while path.is_file() and path.read_bytes() != new.read_bytes():
        number += 1
        path = path.with_name(f"pipeline-{number}.yaml")
    return new.replace(path)


def processes() -> Execution:
    """Each stage a process of this environment."""
    return Execution(local.SubprocessRunner(use_venv=False), end=_end_children)


def _containers(config: Config, run: str) -> Callable[[Path], Execution]:
    """Each stage a container; raises UserError where no engine runs them."""
    with needs_extra("cluster"):
        from pipelines import containers, mounts

    client = containers.connect()
    mounts.share_new_files()
    places = mounts.needed(config)

    def execution(root: Path) -> Execution:
        return Execution(
            containers.runner(client, places, run=run, root=root),
            end=partial(containers.stop, client, run, seconds=_SECONDS_TO_END),
            memory_elsewhere=partial(containers.memory, client, run),
        )

    return execution


@contextlib.contextmanager
def session(folder: Path, monitor: Monitor, execution: Execution) -> Iterator[None]:
    """kfp.local set up to run a pipeline in `folder`; raises RuntimeError where a task of it has failed."""
    root = str(folder / ARTIFACTS)
    os.environ[ROOT_VARIABLE] = root
    with _ending_with_us(execution.end), _terminal_as_stdin(), _logging_to(folder), monitor:
        local.init(execution.runner, pipeline_root=root, enable_caching=True, cache_root=str(folder / CACHE))
        yield


def explain(folder: Path, monitor: Monitor, failure: RuntimeError) -> NoReturn:
    """Raise what went wrong, in the words of the stage where it has left any."""
    log = folder / KFP_LOG_FILE
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
    return next((part for part in named if own in part), named[-1] if named else log)


def refuse_python3(*texts: str) -> None:
    """kfp.local puts the interpreter's path in place of every "python3" among a task's arguments, paths included."""
    for text in texts:
        found = text.find("python3")
        if found >= 0:
            part = text[max(0, found - 30) : found + 30]
            raise UserError(f"'python3' in a path or a value breaks kfp's local runner: …{part}…; rename it")


@contextlib.contextmanager
def _logging_to(folder: Path) -> Iterator[None]:
    """kfp.local logs and relays its tasks' output to sys.stdout: keep that in the logs of a run's folder."""
    with (
        (folder / KFP_LOG_FILE).open("a", encoding="utf-8", buffering=1) as whole,
        (folder / LOG_FILE).open("a", encoding="utf-8", buffering=1) as readable,
        contextlib.redirect_stdout(RunLog(whole, readable)),
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
