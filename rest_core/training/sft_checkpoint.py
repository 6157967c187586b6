"""The warm-up's checkpoints, which transformers' Trainer writes, with the hashes of their files.

checkpoint-15/…             as the Trainer writes it
              hashes.json   SHA-256 of each file; written last, when all else is on the disk
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from transformers import TrainerCallback

from rest_core import manifest, storage
from rest_core.disk import flush, is_plain_file, read_file, write_file

log = logging.getLogger(__name__)

HASHES = "hashes.json"
_CHECKPOINT = re.compile(rf"(checkpoint-([0-9]+))/{re.escape(HASHES)}")


def complete(names: Iterable[str]) -> dict[int, str]:
    """The checkpoints, by their step, that were written to the end, among files by their path below the folder."""
    return {int(found[2]): found[1] for name in names if (found := _CHECKPOINT.fullmatch(name)) is not None}


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint in a training's folder; those whose files have changed are named in the log."""
    for _, name in sorted(complete(storage.list_files(str(folder))).items(), reverse=True):
        if _is_whole(folder / name):
            return folder / name
        log.warning("%s is passed over: its files are not those that were written", folder / name)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        hashes = json.loads(read_file(checkpoint / HASHES))
        return all(
            is_plain_file(checkpoint / name) and manifest.sha256_file(checkpoint / name) == digest
            for name, digest in hashes.items()
        )
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False


class Hashes(TrainerCallback):
    """Completes each checkpoint of the Trainer in `folder`; the training waits for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        PartialState().wait_for_everyone()  # each process has files of its own in the checkpoint
        if not state.is_world_process_zero:
            return
        checkpoint = self._folder / f"checkpoint-{state.global_step}"
        (checkpoint / HASHES).unlink(missing_ok=True)
        hashes = manifest.contents(checkpoint)
        for name in hashes:
            flush(checkpoint / name)
        write_file(checkpoint / HASHES, json.dumps(hashes, indent=2) + "\n")
