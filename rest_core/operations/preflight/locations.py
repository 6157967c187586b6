"""Whether a folder (of a mounted volume) or an s3:// prefix takes files and gives them back."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from pathlib import Path

from rest_core import storage
from rest_core.errors import UserError
from rest_core.operations import pods


def check(location: str) -> str:
    """Write a small file below `location`, read it back and delete it."""
    pods.require_lasting("the location", location)
    if not storage.is_s3(location) and not _mount_point(Path(location)).is_dir():
        raise UserError(f"{location}: there is no such folder; mount the volume there (volumes in platform.yaml)")
    name = f".preflight-{secrets.token_hex(8)}"
    there = f"{location.rstrip('/')}/{name}"
    with tempfile.TemporaryDirectory() as folder:
        here, back = Path(folder) / name, Path(folder) / "back"
        here.write_text(name, encoding="utf-8")
        storage.put_file(here, there)
        try:
            storage.get_file(there, back)
        finally:
            storage.delete_file(there)
        if back.read_text(encoding="utf-8") != name:
            raise UserError(f"{location}: what was written is not what was read back; check the storage")
    if storage.is_s3(location):
        return f"{location} is written, read and deleted from"
    free = shutil.disk_usage(_mount_point(Path(location))).free
    return f"{location} is written, read and deleted from, {free / 2**30:.0f} GiB free"


def _mount_point(folder: Path) -> Path:
    """`folder`, or of a folder that is made later the first one above that is there, the root aside."""
    for one in (folder, *folder.parents):
        if one.is_dir() and one != Path(one.anchor):
            return one
    return folder
