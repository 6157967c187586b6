"""Watches a local pipeline run from beside it: which stage runs, for how long, in how much memory."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

_INTERVAL_SECONDS = 0.25


@dataclass
class StageRun:
    """One stage of a run.

    `seconds` counts from the end of the stage before, so that they add up to the run's time; from its own start where
    another was running.
    """

    name: str
    folder: Path  # the task's folder, with a folder or file for each output artifact
    done: bool = False
    seconds: float = 0.0
    peak_rss_mib: float = 0.0  # this process, everything below it, and the stage's container, sampled
    since: float = 0.0  # on the monotonic clock


class Monitor:
    """Follows the stages of a run by the folders that kfp.local makes: `<root>/<pipeline>-<time>/<task>/`.

    The tasks of a loop lie one folder deeper, `…/<loop>-iteration-<n>/<task>/`.

    kfp.local tells its progress to a log for people only; a task's folder appears when its component starts, and
    `executor_output.json` in it when the component has succeeded. A `with` block is watched from a thread.
    """

    def __init__(
        self,
        root: Path,
        *,
        name: Callable[[Path], str] = lambda folder: folder.name,
        on_start: Callable[[StageRun, int], None] | None = None,
        on_done: Callable[[StageRun], None] | None = None,
        memory_elsewhere: Callable[[], int] | None = None,
    ) -> None:
        """
        Args:
            root: the pipeline's root.
            name: tells a stage's name by its folder.
            on_start: called with a stage that starts and its number, from 1.
            on_done: called with a stage that is done.
            memory_elsewhere: bytes that the stages have at the moment outside this process and its descendants.
        """
        self.stages: dict[str, StageRun] = {}
        self.peak_rss_mib = 0.0
        self._root, self._name = root, name
        self._on_start, self._on_done, self._memory_elsewhere = on_start, on_done, memory_elsewhere
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="monitor", daemon=True)
        self._since = time.monotonic()

    def __enter__(self) -> Monitor:
        for folder in sorted(filter(is_done, task_folders(self._root)), key=_created):
            self.stages[self._name(folder)] = _done_before(self._name(folder), folder)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join()
        self._follow()  # what has happened since the thread's last look

    def _watch(self) -> None:
        while not self._left.wait(_INTERVAL_SECONDS):
            self._sample_memory()
            self._follow()

    def _follow(self) -> None:
        for name, folder in self._newest().items():
            now = time.monotonic()
            if name not in self.stages or self.stages[name].folder != folder:
                alone = all(stage.done for stage in self.stages.values())
                self.stages[name] = StageRun(name, folder, since=self._since if alone else now)
                if self._on_start is not None:
                    self._on_start(self.stages[name], [*self.stages].index(name) + 1)
            stage = self.stages[name]
            if stage.done:
                continue
            stage.seconds = now - stage.since
            if is_done(folder):
                stage.done, self._since = True, now
                if self._on_done is not None:
                    self._on_done(stage)

    def _newest(self) -> dict[str, Path]:
        """The folder of each stage, in the order in which they were made: that of its last attempt."""
        folders: dict[str, Path] = {}
        for folder in sorted(task_folders(self._root), key=_created):
            name = self._name(folder)
            folders[name] = max(folder, folders.get(name, folder))  # the path has the time of the attempt
        return folders

    def _sample_memory(self) -> None:
        elsewhere = self._memory_elsewhere() if self._memory_elsewhere is not None else 0
        rss = (sum(_rss(process) for process in family()) + elsewhere) / 2**20
        self.peak_rss_mib = max(self.peak_rss_mib, rss)
        for stage in self.stages.values():
            if not stage.done:
                stage.peak_rss_mib = max(stage.peak_rss_mib, rss)


def _done_before(name: str, folder: Path) -> StageRun:
    """A stage that an earlier attempt of the run has done, with the cost that it measured itself."""
    try:
        figures = json.loads((folder / "metrics").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        figures = {}
    return StageRun(
        name,
        folder,
        done=True,
        seconds=figures.get("stage/seconds", 0.0),
        peak_rss_mib=figures.get("stage/peak_rss_mib", 0.0),
    )


def is_done(task: Path) -> bool:
    """Whether the component of a task's folder has succeeded."""
    return (task / "executor_output.json").is_file()


def _created(folder: Path) -> float:
    return folder.stat().st_ctime


def task_folders(root: Path) -> Iterator[Path]:
    """The folders of tasks below a pipeline's root, those of loops included; a link is none of them."""
    for run in _folders(root):
        for folder in () if run.name.startswith(".") else _folders(run):
            if "-iteration-" in folder.name:
                yield from _folders(folder)
            else:
                yield folder


def _folders(parent: Path) -> Iterator[Path]:
    return (path for path in parent.glob("*/") if not path.is_symlink())


def family() -> Iterator[psutil.Process]:
    """This process and everything that it has started."""
    me = psutil.Process()
    yield me
    yield from me.children(recursive=True)


def _rss(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:  # ended since it was listed
        return 0
