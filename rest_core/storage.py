"""Files and folders by path or s3:// URI.

Every function raises `UserError` where a place is missing, refuses access or does not answer, and where the disk is
full.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rest_core import checked, s3
from rest_core.disk import disk_errors, remove, written_aside
from rest_core.errors import UserError
from rest_core.s3 import S3

_WILDCARD = re.compile(r"[*?\[]")
_ANY: Mapping[str, str] = {}


def cache_folder() -> Path:
    """Where downloads are kept: `rest-pipelines` below XDG_CACHE_HOME, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rest-pipelines"


def is_s3(location: str) -> bool:
    return location.startswith(S3)


def fetch(location: str, cache: Path, *, sha256: Mapping[str, str] = _ANY) -> Path:
    """The local path of a file or folder: a path as it is, an s3:// object or prefix downloaded below `cache`.

    A download is kept under a name made of the objects' ETags: it is fetched once, and never stale. It gets that name
    when it is known to be what S3 holds (`s3.download`); a copy that has changed since is fetched again.

    Args:
        location: a path or URI.
        cache: folder of downloads.
        sha256: of the files of a prefix, by their names, where that is known.
    """
    if not is_s3(location):
        path = Path(location).expanduser()
        if not path.exists():
            raise UserError(f"{location}: no such file or folder; check the path")
        return path
    with s3.opened(location) as (bucket, key), disk_errors(cache):
        objects = s3.objects(bucket, key)
        if not objects:
            raise UserError(f"{location}: no such object or prefix; check bucket and key")
        state = "\n".join([bucket.name, *(f"{found.key} {found.e_tag}" for found in objects.values())])
        place = cache / "s3" / hashlib.sha256(state.encode()).hexdigest()[:32]
        target, record = place / Path(key.rstrip("/") or bucket.name).name, place.with_suffix(".checked")
        expected = {name: sha256.get(name, "") for name in objects}
        if target.exists() and not _is_right(target, record, bucket, objects, expected):
            remove(target)
        if not target.exists():
            with written_aside(target) as aside:
                s3.download(bucket, objects, aside, sha256)
        checked.note(record, checked.state(target, expected))
    return target


def _is_right(target: Path, record: Path, bucket: Any, objects: Mapping[str, Any], expected: Mapping[str, str]) -> bool:
    """Whether a copy in the cache is what S3 holds; it is read where it may have changed since the last look."""
    if target.is_dir() == ("" in objects) or (target.is_dir() and set(list_files(str(target))) != objects.keys()):
        return False
    return checked.holds(record, checked.state(target, expected)) or all(
        s3.is_intact(bucket, found, target / name, expected[name] or None) for name, found in objects.items()
    )


def expand(location: str) -> list[str]:
    """Every location that a glob, or an s3:// prefix or glob, stands for, sorted; any other location alone.

    What is there as it is written is no glob.
    """
    if not is_s3(location):
        if not _WILDCARD.search(location) or Path(location).expanduser().exists():
            return [location]
        # pathlib cannot glob an absolute pattern.
        found = sorted(glob.glob(str(Path(location).expanduser()), recursive=True))  # noqa: PTH207
        if not found:
            raise UserError(f"{location}: no file matches this pattern")
        return found
    with s3.opened(location) as (bucket, key):
        objects = [*s3.objects(bucket, key).values()]
        literal = _WILDCARD.split(key)[0]
        if not objects and literal != key:
            listed = s3.without_marks(bucket.objects.filter(Prefix=literal))
            objects = [one for one in listed if fnmatch.fnmatchcase(one.key, key)]
    if not objects:
        raise UserError(f"{location}: no object matches; check bucket and key")
    return [f"{S3}{bucket.name}/{key}" for key in sorted(found.key for found in objects)]


def list_files(location: str) -> list[str]:
    """Names of the files below a folder or s3:// prefix, relative to it, sorted; none where there is no such place."""
    if is_s3(location):
        with s3.opened(location) as (bucket, key):
            return sorted(s3.below(bucket, key))
    root = Path(location).expanduser()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def state(location: str) -> str:
    """What is at a path, folder, glob or s3:// URI: another text where a file there has changed.

    Of S3's objects by their ETags, of files by their sizes and times. Under a glob of S3 every object counts whose key
    begins as it does, whether it matches or not.
    """
    if is_s3(location):
        with s3.opened(location) as (bucket, key):
            below = bucket.objects.filter(Prefix=_WILDCARD.split(key)[0].rstrip("/"))
            lines = [f"{found.key} {found.e_tag}" for found in below]
    else:
        paths = [path for place in expand(location) for path in _files(Path(place).expanduser())]
        lines = [f"{path} {(found := path.stat()).st_size} {found.st_mtime_ns}" for path in paths]
    if not lines:
        raise UserError(f"{location}: nothing is there; check the spelling")
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]


def upload_folder(folder: Path, uri: str, *, last: str = "manifest.json") -> str:
    """Copy the files of `folder` to a path or s3:// prefix; returns the location written, without a trailing slash.

    A local destination must be new, and is there whole or not at all. On S3 the file `last` goes last: a prefix that
    has it is complete.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; nothing to upload")
    uri = uri.rstrip("/")
    if not is_s3(uri):
        target = Path(uri).expanduser()
        if target.exists():
            raise UserError(f"{uri}: exists already; give a new destination")
        with disk_errors(target), written_aside(target) as aside:
            aside.mkdir()
            get_folder(str(folder), aside)
        return uri
    with s3.opened(uri) as (bucket, prefix):
        keys = {name: f"{prefix}/{name}".lstrip("/") for name in list_files(str(folder))}

        def upload(name: str) -> None:
            bucket.upload_file(str(folder / name), keys[name])

        s3.at_once(upload, [name for name in keys if name != last])
        s3.at_once(upload, [name for name in keys if name == last])
    return uri


def get_folder(location: str, target: Path) -> None:
    """Copy the files below a folder or s3:// prefix into the folder `target`."""
    with disk_errors(target):
        if is_s3(location):
            with s3.opened(location) as (bucket, key):
                s3.download(bucket, s3.below(bucket, key), target, _ANY)
            return
        for name in list_files(location):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            # Contents alone: whoever reads a shared folder may be another user than who could read the originals.
            shutil.copyfile(Path(location).expanduser() / name, target / name)


def put_file(file: Path, location: str) -> None:
    """Copy a file to a path or s3:// key, whole or not at all; a file that is there is replaced."""
    if is_s3(location):
        with s3.opened(location) as (bucket, key):
            bucket.upload_file(str(file), key)
        return
    target = Path(location).expanduser()
    with disk_errors(target), written_aside(target) as aside:
        shutil.copyfile(file, aside)


def get_file(location: str, target: Path) -> None:
    """Copy one file from a path or s3:// key to `target`, whose folder exists."""
    with disk_errors(target):
        if is_s3(location):
            with s3.opened(location) as (bucket, key):
                if (found := s3.objects(bucket, key).get("")) is None:
                    raise UserError(f"{location}: no such object")
                s3.download(bucket, {"": found}, target, _ANY)
            return
        try:
            shutil.copyfile(Path(location).expanduser(), target)
        except FileNotFoundError:
            raise UserError(f"{location}: no such file") from None


def delete_file(location: str) -> None:
    """Delete a file by path or s3:// key; it may be gone already. An empty folder that is left goes too."""
    if is_s3(location):
        with s3.opened(location) as (bucket, key):
            bucket.Object(key).delete()
        return
    path = Path(location).expanduser()
    with disk_errors(path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def delete_folder(location: str, *, first: str | None = None) -> None:
    """Delete all files below a folder or s3:// prefix, the file `first` before all others; there may be none."""
    if first is not None:
        delete_file(f"{location}/{first}")
    if not is_s3(location):
        path = Path(location).expanduser()
        with disk_errors(path), suppress(FileNotFoundError):
            shutil.rmtree(path)
        return
    with s3.opened(location) as (bucket, key):
        for found in bucket.objects.filter(Prefix=f"{key.rstrip('/')}/"):
            found.delete()  # one by one: not every store that speaks S3 takes a list of keys
