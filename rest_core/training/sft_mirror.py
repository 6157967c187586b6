"""A second place for the warm-up's checkpoints, for another machine to go on from: the newest one of the Trainer's.

    <location>/checkpoint-15/…    as in the training's own folder

`trainer_state.json`, which the Trainer writes last, is copied last and deleted first: a checkpoint without it is torn.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from transformers import TrainerCallback

from rest_core import storage
from rest_core.errors import UserError
from rest_core.training.distributed import on_first

log = logging.getLogger(__name__)

_LAST = "trainer_state.json"
_CHECKPOINT = re.compile(rf"(checkpoint-([0-9]+))/{re.escape(_LAST)}")


def newest(names: Iterable[str]) -> str | None:
    """The newest whole checkpoint among files by their path below a training's folder."""
    whole = {int(found[2]): found[1] for name in names if (found := _CHECKPOINT.fullmatch(name)) is not None}
    return whole[max(whole)] if whole else None


class SftMirror(TrainerCallback):
    """Copies each checkpoint of the Trainer in `folder` to `location`; the training waits for it.

    A copy that fails is logged, and the training goes on.
    """

    def __init__(self, location: str, folder: Path) -> None:
        self._location, self._folder = location, folder

    def fetch(self) -> None:
        """Download the newest checkpoint, where the folder has none that is as new; every process calls it.

        Raises:
            UserError: the location cannot be read, or the disk is full.
        """
        on_first(self._fetch)

    def _fetch(self) -> None:
        names = storage.list_files(self._location)
        there, here = newest(names), newest(storage.list_files(str(self._folder)))
        if there is None or (here is not None and _step(here) >= _step(there)):
            return
        log.info("downloading %s/%s", self._location, there)
        target = self._folder / there
        with storage.disk_errors(target):
            shutil.rmtree(target, ignore_errors=True)  # torn
            with storage.written_aside(target) as aside:
                for name in (name for name in names if name.startswith(f"{there}/")):
                    file = aside / name.removeprefix(f"{there}/")
                    file.parent.mkdir(parents=True, exist_ok=True)
                    storage.get_file(f"{self._location}/{name}", file)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        PartialState().wait_for_everyone()  # each process has files of its own in the checkpoint
        if not state.is_world_process_zero:
            return
        try:
            self._copy(self._folder / f"checkpoint-{state.global_step}")
        except UserError as error:
            log.error("%s; this checkpoint is not mirrored, training goes on and tries again with the next", error)

    def _copy(self, checkpoint: Path) -> None:
        for name in sorted(storage.list_files(str(checkpoint)), key=lambda name: name == _LAST):
            storage.put_file(checkpoint / name, f"{self._location}/{checkpoint.name}/{name}")
        others = {name.split("/")[0] for name in storage.list_files(self._location)} - {checkpoint.name}
        for other in sorted(others):
            storage.delete_file(f"{self._location}/{other}/{_LAST}")
            storage.delete_folder(f"{self._location}/{other}")


def _step(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])
