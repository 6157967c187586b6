"""A second place for the warm-up's checkpoints, for another machine to resume from: the newest one of the Trainer's.

    <location>/checkpoint-15/…    as in the training's own folder

`hashes.json`, which is written last, is copied last and deleted first: a checkpoint without it is torn.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from transformers import TrainerCallback

from rest_core import storage
from rest_core.disk import disk_errors, remove, written_aside
from rest_core.errors import UserError
from rest_core.training.distributed import on_first
from rest_core.training.sft_checkpoint import HASHES, complete, newest

log = logging.getLogger(__name__)


class SftMirror(TrainerCallback):
    """Copies each checkpoint of the Trainer in `folder` to `location`; the training waits for it.

    A copy that fails is logged, and the training continues.
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
        there, here = complete(storage.list_files(self._location)), newest(self._folder)
        if not there or (here is not None and _step(here.name) >= max(there)):
            return
        name = there[max(there)]
        log.info("downloading %s/%s", self._location, name)
        target = self._folder / name
        with disk_errors(target):
            remove(target)  # torn
            with written_aside(target) as aside:
                aside.mkdir()
                storage.get_folder(f"{self._location}/{name}", aside)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        PartialState().wait_for_everyone()  # each process has files of its own in the checkpoint
        if not state.is_world_process_zero:
            return
        try:
            self._copy(self._folder / f"checkpoint-{state.global_step}")
        except UserError as error:
            log.error("%s; this checkpoint is not mirrored, the next copy makes up for it", error)

    def _copy(self, checkpoint: Path) -> None:
        there = {name.split("/")[0] for name in storage.list_files(self._location)}
        place = f"{self._location}/{checkpoint.name}"
        storage.delete_folder(place, first=HASHES)
        storage.upload_folder(checkpoint, place, last=HASHES)
        for other in sorted(there - {checkpoint.name}):
            storage.delete_folder(f"{self._location}/{other}", first=HASHES)


def _step(checkpoint: str) -> int:
    return int(checkpoint.rpartition("-")[2])
