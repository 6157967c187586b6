"""A training stage in several processes of this machine, by `accelerate launch`."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rest_core import manifest, storage
from rest_core.config import LaunchConfig, Section, profile_folder
from rest_core.errors import EXIT_USER_ERROR, Preempted, UserError
from rest_core.operations import handoff
from rest_core.operations.launch.command import Command, arguments, write_profile
from rest_core.processes import is_launched
from rest_core.stages.stage import ERROR_FILE, METRICS_FILE, StageResult

log = logging.getLogger(__name__)


def processes(launch: LaunchConfig, most: int | None = None) -> int:
    """How many processes the stage runs in: as many as configured, else one a GPU that is visible here.

    One that has been started as one of several starts no more.

    Args:
        launch: the configuration.
        most: the largest number that is chosen; what is configured is left as it is.
    """
    if is_launched():
        return 1
    if launch.processes is not None:
        return launch.processes
    import torch

    found = torch.cuda.device_count()
    return max(1, found if most is None else min(found, most))


def accelerate_config(sharding: str) -> Path:
    """The configuration file of `accelerate launch` for "ddp" or "fsdp2"."""
    return profile_folder() / "accelerate" / f"{sharding}.yaml"


def run(
    command: Command,
    sections: Mapping[str, Section],
    folders: Mapping[str, Path | str],
    *,
    pipeline_run: str,
    out: Path,
    processes: int,
    sharding: str,
    trial: str | None = None,
) -> StageResult:
    """Run a stage's command in `processes` processes, and wait for them; SIGTERM and SIGINT are passed on to them.

    Args:
        command: of the stage.
        sections: of the configuration, all that the stage reads.
        folders: its inputs by name.
        pipeline_run: key of the pipeline run in MLflow.
        out: folder that the stage fills.
        processes: at least two.
        sharding: "ddp" or "fsdp2".
        trial: the trial of an ablation (`Trial.text`), whose settings `sections` has.

    Raises:
        UserError: what one of the processes told, or that they ended otherwise.
        Preempted: they were told to stop; the same stage, started again, goes on.
    """
    profile = out.with_name(f"{out.name}.launch.yaml")
    with storage.disk_errors(profile):
        write_profile(profile, sections)
        out.mkdir(parents=True, exist_ok=True)
        for stale in (ERROR_FILE, METRICS_FILE, manifest.FILE_NAME, handoff.FILE_NAME):
            (out / stale).unlink(missing_ok=True)
    launch = ["--config_file", str(accelerate_config(sharding)), "--num_processes", str(processes)]
    told = arguments(command, profile, folders, pipeline_run=pipeline_run, out=out, trial=trial)
    log.info("%d processes by accelerate launch (%s)", processes, sharding)
    launcher = subprocess.Popen(
        [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "pipelines.cli", *told]
    )
    with _passing_signals_to(launcher):
        code = launcher.wait()
    if (out / ERROR_FILE).is_file():
        left = json.loads((out / ERROR_FILE).read_text(encoding="utf-8"))
        if left["exit_code"] == EXIT_USER_ERROR:
            raise UserError(left["message"])
        raise Preempted(left["message"], exit_code=left["exit_code"])
    if code != 0 or not (out / manifest.FILE_NAME).is_file():
        raise UserError(
            f"rest {command}: its {processes} processes ended with exit code {code}; what they told is above (one that "
            "is killed without a word has mostly run out of memory)"
        )
    return finished(out)


def finished(out: Path) -> StageResult:
    """The result of a stage that other processes have run, from its folder."""
    metrics = json.loads((out / METRICS_FILE).read_text(encoding="utf-8"))
    return StageResult(metrics, manifest.read(out)["counts"].get("skipped"))


@contextmanager
def handling_signals(handler: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call `handler` on SIGTERM and SIGINT for as long as the block lasts; in the main thread, elsewhere nothing."""

    def handle(number: int, frame: FrameType | None) -> None:
        handler(signal.Signals(number))

    try:
        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread, where Python lets nobody handle signals
        before = {}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextmanager
def _passing_signals_to(launcher: subprocess.Popen[bytes]) -> Iterator[None]:
    """A terminal sends Ctrl-C to the launcher too: only what this process alone was sent is passed on."""

    def handler(number: signal.Signals) -> None:
        if number is signal.SIGTERM or not os.isatty(0):
            launcher.send_signal(number)

    with handling_signals(handler):
        yield
