"""Files of this machine: written whole or not at all, by one process, and what a full disk says in one line."""

from __future__ import annotations

import errno
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rest_core.errors import UserError

log = logging.getLogger(__name__)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.ELOOP)
_FAILING = (errno.EIO, errno.ESTALE, errno.EFBIG, errno.ENAMETOOLONG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


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


def write_file(path: Path, text: str) -> None:
    """Write a file (UTF-8) whole or not at all; what goes wrong with the disk is a `UserError`."""
    with disk_errors(path), written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def held(lock: Path, problem: str) -> Iterator[None]:
    """Hold a lock file as long as the block runs; the system frees it when the process ends, however that ends.

    Where a file system has no locks, a warning says so and the block runs.

    Args:
        lock: beside what only one process may write.
        problem: what the user is told when another process holds it.
    """
    file = FileLock(lock, blocking=False)
    try:
        with disk_errors(lock):
            file.acquire()
    except Timeout:
        raise UserError(problem) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        log.warning("%s: the file system has no locks; make sure that no other process writes there", lock.parent)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: whoever has opened it meanwhile sees that it is gone
        file.release()


def refuse_links(*folders: Path) -> None:
    """Raise `UserError` where a folder is a link: files are written to it and deleted from it by their names."""
    for folder in folders:
        if folder.is_symlink():
            raise UserError(f"{folder}: is a link, and files are deleted there; remove it, or choose another place")


def is_plain_file(path: Path) -> bool:
    """Whether there is a file itself: no link to one, and nothing that could be waited for when it is opened."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def read_file(path: Path) -> bytes:
    """The content of a file; an OSError where there is none, or something else that could be waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no file", str(path))
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read()


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn what goes wrong with the disk below `place` (see `disk_problem`) into a `UserError`."""
    try:
        yield
    except OSError as error:
        if (problem := disk_problem(error, place)) is None:
            raise
        raise UserError(problem) from error


def disk_problem(error: BaseException, place: Path | str) -> str | None:
    """What the user is told of a disk that is full or fails, of a refused access, and of a file in a folder's place.

    Args:
        error: an OSError, or one of safetensors or torch.save; None comes back for any other one.
        place: where it happened, unless the error names a file.
    """
    number = getattr(error, "errno", None)
    if number is None and (found := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors'
        number = int(found[1])
    if isinstance(error, RuntimeError) and "inline_container" in str(error):  # torch.save's; it does not say more
        number = errno.ENOSPC
    names = (getattr(error, name, None) for name in ("filename2", "filename"))
    where = next((name for name in names if name is not None), place)
    if number in _FULL:
        return f"{where}: the disk is full; free some space and start again"
    if number in _REFUSED:
        return f"{where}: no permission; let this user (id {os.getuid()}) read and write there, or choose another place"
    if number in _IN_THE_WAY:
        return f"{where}: something else has this name; remove it, or choose another place"
    if number in _FAILING:
        return (
            f"{where}: {os.strerror(number).lower()}; check the disk, its limits and its mount, or choose another place"
        )
    return None
