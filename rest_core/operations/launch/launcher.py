"""A training stage in several processes of this machine, by `accelerate launch`."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rest_core import manifest
from rest_core.config import LaunchConfig, profile_folder
from rest_core.disk import disk_errors
from rest_core.errors import UserError
from rest_core.operations.launch import worker
from rest_core.operations.launch.job import FILE_NAME, Job
from rest_core.operations.result import StageResult, clear, raise_error
from rest_core.processes import is_launched

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


def run(job: Job, *, out: Path, processes: int, sharding: str) -> StageResult:
    """Run a stage in `processes` processes, and wait for them; SIGTERM and SIGINT are passed on to them.

    Args:
        job: the call of the stage, its inputs folders of this machine or a model's source.
        out: folder that the stage fills.
        processes: at least two.
        sharding: "ddp" or "fsdp2".

    Raises:
        UserError: what one of the processes reported, or that they ended otherwise.
        Preempted: they were asked to stop; the same stage, started again, resumes.
    """
    with disk_errors(out):
        clear(out)
    file = job.write(out.with_name(f"{out.name}.{FILE_NAME}"))
    launch = ["--config_file", str(accelerate_config(sharding)), "--num_processes", str(processes)]
    log.info("%d processes by accelerate launch (%s)", processes, sharding)
    command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", worker.__name__, str(file), str(out)]
    launcher = subprocess.Popen(command)
    with _passing_signals_to(launcher):
        code = launcher.wait()
    raise_error(out)
    if code != 0 or not (out / manifest.FILE_NAME).is_file():
        raise UserError(
            f"{job.stage}: its {processes} processes ended with exit code {code}; their output is above (one that "
            "is killed without a message has mostly run out of memory)"
        )
    return StageResult.read(out)


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
