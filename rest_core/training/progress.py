"""What a training leaves on the way: checkpoints and their mirror, metrics and tables, each reported as it comes.

The first process alone reads and writes; the others get its result, errors included, so that all end together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rest_core.disk import refuse_links
from rest_core.errors import UserError
from rest_core.processes import is_main_process
from rest_core.training.checkpoint import Checkpoints, TrainingState, remove_leftovers, step_of
from rest_core.training.distributed import on_first
from rest_core.training.history import FILE_NAME as HISTORY
from rest_core.training.history import TABLES, History
from rest_core.training.mirror import Mirror
from rest_core.training.state import Tensors, full_state, load_full_state, load_parameters, trained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Observer:
    """Where the trainer reports to: scalars of a step, and tables of completions.

    A training that resumes first reports what had been reported up to its checkpoint.
    """

    metrics: Callable[[dict[str, float], int], None]
    table: Callable[[list[dict[str, Any]], str], None]
    phase: Callable[[str, int], None] = lambda name, step: None  # what begins: rollout, update, checkpoint …


class Progress:
    """Saves and restores where a training stands; every process calls the methods.

    Args:
        folder: made when the training begins.
        training: what decides the training's result, see `Checkpoints`.
        keep: how many of the newest checkpoints stay.
        mirror: where else checkpoints go, see `Mirror`; None = nowhere.
    """

    def __init__(
        self, folder: Path, observer: Observer, *, training: Mapping[str, Any], keep: int, mirror: str | None
    ) -> None:
        self.folder, self.observer = folder, observer
        self.checkpoints = Checkpoints(folder, training=training, keep=keep)
        self.history = History(folder)
        self.mirror = Mirror(mirror, self.checkpoints, self.history) if mirror is not None else None
        self.last: Path | None = None  # the newest whole checkpoint

    @property
    def last_good(self) -> str:
        """Where to go back to, for an error's message."""
        return f"the last good checkpoint is {self.last}" if self.last else "no checkpoint has been written yet"

    def record(self, metrics: dict[str, float], step: int) -> None:
        """Report metrics, and keep them for the next checkpoint."""
        if is_main_process():
            if self.mirror is not None:
                metrics = {**metrics, "checkpoint/mirror_failures": float(self.mirror.failures)}
            self.history.add(metrics, step)
            self.observer.metrics(metrics, step)

    def record_table(self, rows: list[dict[str, Any]], step: int) -> None:
        """Report a table of completions, and keep it for the next checkpoint."""
        if is_main_process():
            with self.checkpoints.disk_errors():
                self.history.add_table(rows, step)
            self.observer.table(rows, _table_name(step))

    def save(self, state: TrainingState, model: Any, optimizer: torch.optim.Optimizer) -> None:
        """Write the checkpoint of `state`, where it has not been written."""
        path = self.checkpoints.path(state.step)
        if self.last == path:
            return
        parameters, moments = full_state(model, optimizer)

        def write() -> None:
            whole = state.model_copy(update={"tables": dict(self.history.tables)})
            self.checkpoints.save(whole, parameters, moments, self.history.content)
            if self.mirror is not None:
                self.mirror.offer(whole)

        on_first(write)
        self.last = path

    def resume(self, model: Any, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Load the newest checkpoint of this training, here or in the mirror; None where there is none.

        Raises:
            UserError: there are checkpoints of another training, or the folder or the mirror cannot be used.
        """
        found = on_first(lambda: self._find(model))
        if found is None:
            return None
        self.last, state = found
        parameters: Tensors = {}
        moments: Tensors = {}
        if is_main_process():
            _, parameters, moments, _ = self.checkpoints.read(self.last)
        load_full_state(model, optimizer, parameters, moments)
        if is_main_process():
            log.info("resuming after step %d (%s)", state.step, self.last)
            for metrics, step in self.history.metrics():
                self.observer.metrics(metrics, step)
            for name in sorted(self.history.tables):
                self.observer.table(self.history.read_table(name), _table_name(step_of(Path(name).stem)))
        return state

    def load_best(self, step: int, model: Any) -> None:
        """Put the weights of a checkpoint that was kept into the model; moments stay as they are."""
        path = self.checkpoints.path(step)

        def check() -> None:
            problem, _ = self.checkpoints.problem(path, trained(model))
            if problem is not None:
                raise UserError(f"{path}, the best checkpoint, cannot be read: {problem}; set rl.final=last")

        on_first(check)
        load_parameters(model, self.checkpoints.read(path)[1] if is_main_process() else {})

    def finish(self, state: TrainingState) -> dict[str, float]:
        """Wait for the mirror; returns the throughput of all steps, and how many copies have failed.

        Raises:
            UserError: the newest checkpoint did not reach the mirror.
        """
        result = {}
        timed = [metrics for metrics, _ in self.history.metrics() if "seconds/step" in metrics]
        if timed:
            seconds = sum(metrics["seconds/step"] for metrics in timed)
            result["rl/tokens_per_second"] = sum(metrics["tokens/generated"] for metrics in timed) / seconds
        if (mirror := self.mirror) is not None:

            def wait() -> None:
                mirror.retry(state.model_copy(update={"tables": dict(self.history.tables)}))
                mirror.close()

            on_first(wait)
            result["checkpoint/mirror_failures"] = float(mirror.failures)
        return result

    def leave_mirror(self, seconds: float) -> None:
        """Wait for the mirror, at most so long; what does not get there is logged."""
        if self.mirror is not None and is_main_process():
            try:
                self.mirror.close(timeout=seconds)
            except UserError as error:
                log.error("%s", error)

    def _find(self, model: Any) -> tuple[Path, TrainingState] | None:
        """The newest checkpoint and its state; the history is what it was then."""
        refuse_links(self.folder, self.folder / TABLES)
        with self.checkpoints.disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
        expected = trained(model)
        path = self.checkpoints.latest(expected)
        if self.mirror is not None:
            path = self.mirror.newest(-1 if path is None else step_of(path.name), expected) or path
        with self.checkpoints.disk_errors():
            if path is None:
                self.history.restore(b"", {})
                return None
            state = self.checkpoints.state(path)
            self.history.restore((path / HISTORY).read_bytes(), state.tables)
        if state.best is not None:
            best = self.checkpoints.path(state.best.step)
            problem = None if best == path else self.checkpoints.problem(best, expected)[0]
            if problem is not None:
                log.warning("%s, the best checkpoint so far, is lost (%s): the best is looked for anew", best, problem)
                state = state.model_copy(update={"best": None})
        return path, state


def _table_name(step: int) -> str:
    return f"completions_step_{step:06d}"
