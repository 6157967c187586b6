"""A training's own folder: checkpoints, what was logged, and their mirror. All methods but the named are collectives.

The first process alone reads and writes; the others are told what it found, errors included, so that all end together.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate.utils import broadcast_object_list

from rest_core.errors import UserError
from rest_core.processes import is_main_process
from rest_core.training.checkpoint import Checkpoints, TrainingState, remove_leftovers, step_of
from rest_core.training.history import History
from rest_core.training.mirror import Mirror
from rest_core.training.state import Tensors, full_state, load_full_state, load_parameters, trained

log = logging.getLogger(__name__)
T = TypeVar("T")


class TrainingFolder:
    """What a training leaves on the way.

    Args:
        folder: made when the training begins.
        training: what decides the training's result, see `Checkpoints`.
        keep: how many of the newest checkpoints stay.
        mirror: where else checkpoints go, see `Mirror`; None = nowhere.
    """

    def __init__(self, folder: Path, *, training: Mapping[str, Any], keep: int, mirror: str | None) -> None:
        self.folder = folder
        self.checkpoints = Checkpoints(folder, training=training, keep=keep)
        self.history = History(folder)
        self.mirror = Mirror(mirror, self.checkpoints, self.history) if mirror is not None else None
        self.last: Path | None = None  # the newest whole checkpoint

    @property
    def last_good(self) -> str:
        """Where to go back to, for an error's message; no collective."""
        return f"the last good checkpoint is {self.last}" if self.last else "no checkpoint has been written yet"

    def resume(self, model: Any, optimizer: torch.optim.Optimizer) -> TrainingState | None:
        """Take up the newest checkpoint of this training, here or in the mirror; None where there is none.

        Raises:
            UserError: there are checkpoints of another training only, or the folder or the mirror cannot be used.
        """
        found = on_first(lambda: self._find(model))
        if found is None:
            return None
        self.last, state = found
        parameters: Tensors = {}
        moments: Tensors = {}
        history = b""
        if is_main_process():
            _, parameters, moments, history = self.checkpoints.read(self.last)
        load_full_state(model, optimizer, parameters, moments)
        on_first(lambda: self._restore_history(history, state.tables))
        return state

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

    def load_weights(self, step: int, model: Any) -> None:
        """Put the weights of a checkpoint that was kept into the model; moments stay as they are."""
        path = self.checkpoints.path(step)

        def read() -> None:
            problem, _ = self.checkpoints.problem(path, trained(model))
            if problem is not None:
                raise UserError(f"{path}, the best checkpoint, cannot be read: {problem}; set rl.final=last")

        on_first(read)
        load_parameters(model, self.checkpoints.read(path)[1] if is_main_process() else {})

    def record(self, metrics: Mapping[str, float], step: int) -> None:
        """Add an entry to the history; no collective, for the first process."""
        with self.checkpoints.disk_errors():
            self.history.add(metrics, step)

    def record_table(self, rows: list[dict[str, Any]], step: int) -> None:
        """Add a table of completions; no collective, for the first process."""
        with self.checkpoints.disk_errors():
            self.history.add_table(rows, step)

    def _find(self, model: Any) -> tuple[Path, TrainingState] | None:
        with self.checkpoints.disk_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.folder)
        expected = trained(model)
        path, foreign = self.checkpoints.latest(expected)
        if self.mirror is not None:
            path = self.mirror.newest(-1 if path is None else step_of(path.name), expected) or path
        if path is None and foreign:
            raise UserError(f"{foreign[0]}; choose another output folder, or remove this checkpoint")
        if path is None:
            with self.checkpoints.disk_errors():  # told now and not after the first steps
                self.history.restore(b"", {})
            return None
        state = self.checkpoints.state(path)
        if state.best is not None:
            best = self.checkpoints.path(state.best.step)
            problem = None if best == path else self.checkpoints.problem(best, expected)[0]
            if problem is not None:
                log.warning("%s, the best checkpoint so far, is lost (%s): the best is looked for anew", best, problem)
                state = state.model_copy(update={"best": None})
        return path, state

    def _restore_history(self, content: bytes, tables: Mapping[str, str]) -> None:
        with self.checkpoints.disk_errors():
            self.history.restore(content, tables)


def on_first(function: Callable[[], T]) -> T:
    """Call `function` in the first process; every process gets its result, or raises its `UserError`."""
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result
