"""Files of this machine: written whole or not at all, and what a full disk says in one line."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rest_core.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to; it takes `target`'s name when the block succeeds.

    What has the name is on the disk, whole. A block that fails leaves nothing behind. A file that is there is replaced;
    a folder that another process has made meanwhile stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_name(f".partial-{secrets.token_hex(4)}-{target.name}")
    try:
        yield aside
        for path in (aside, *aside.rglob("*")):
            flush(path)
        try:
            aside.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        flush(target.parent)
    finally:
        remove(aside)


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link and not what it leads to; it may be gone already."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn a full disk and a refused access below `place` into a `UserError`."""
    try:
        yield
    except OSError as error:
        if (problem := disk_problem(error, place)) is None:
            raise
        raise UserError(problem) from error


def disk_problem(error: BaseException, place: Path | str) -> str | None:
    """What a full disk or a refused access at `place` says to the user; None for any other error."""
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors'
        number = int(found[1])
    where = getattr(error, "filename", None) or place
    if number in _FULL:
        return f"{where}: the disk is full; free some space and start again"
    if number in _REFUSED:
        return f"{where}: no permission; let this user (id {os.getuid()}) read and write there, or choose another place"
    return None
