"""Files and folders by path or s3:// URI.

S3 goes through boto3, which reads the standard environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL …) by
itself. Every function raises `UserError` where a place is missing, refuses access or does not answer, and where the
disk is full.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rest_core.disk import disk_errors, written_aside
from rest_core.errors import UserError, one_line

S3 = "s3://"
ADDRESSING_VARIABLE = "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"
"""auto, path or virtual: boto3 has no variable for it, and MLflow's own S3 client reads this one."""
_WILDCARD = re.compile(r"[*?\[]")
_AT_ONCE = 8  # files of a folder; boto3 copies the parts of a large one at once besides
_DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_config: ContextVar[Config | None] = ContextVar("s3_config", default=None)


def cache_folder() -> Path:
    """Where downloads are kept: `rest-pipelines` below XDG_CACHE_HOME, or below ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rest-pipelines"


def is_s3(location: str) -> bool:
    return location.startswith(S3)


def fetch(location: str, cache: Path) -> Path:
    """The local path of a file or folder: a path as it is, an s3:// object or prefix downloaded below `cache`.

    A download is kept under a name made of the objects' ETags: it is fetched once, and never stale.
    """
    if not is_s3(location):
        path = Path(location).expanduser()
        if not path.exists():
            raise UserError(f"{location}: no such file or folder; check the path")
        return path
    with _s3(location) as (bucket, key), disk_errors(cache):
        objects = _exactly(bucket, key) or _below(bucket, key)
        if not objects:
            raise UserError(f"{location}: no such object or prefix; check bucket and key")
        state = "\n".join([bucket.name, *(f"{found.key} {found.e_tag}" for found in objects.values())])
        name = hashlib.sha256(state.encode()).hexdigest()[:32]
        target = cache / "s3" / name / Path(key.rstrip("/") or bucket.name).name
        if not target.exists():
            with written_aside(target) as aside:
                _download(bucket, objects, aside)
    return target


def expand(location: str) -> list[str]:
    """Every location that a glob, or an s3:// prefix or glob, stands for, sorted; any other location alone."""
    if not is_s3(location):
        if not _WILDCARD.search(location) or Path(location).exists():
            return [location]
        # pathlib cannot glob an absolute pattern.
        found = sorted(glob.glob(str(Path(location).expanduser()), recursive=True))  # noqa: PTH207
        if not found:
            raise UserError(f"{location}: no file matches this pattern")
        return found
    with _s3(location) as (bucket, key):
        literal = _WILDCARD.split(key)[0]
        if literal != key:
            objects = [one for one in bucket.objects.filter(Prefix=literal) if fnmatch.fnmatchcase(one.key, key)]
        else:
            objects = [*(_exactly(bucket, key) or _below(bucket, key)).values()]
    keys = sorted(found.key for found in objects if not found.key.endswith("/"))
    if not keys:
        raise UserError(f"{location}: no object matches; check bucket and key")
    return [f"{S3}{bucket.name}/{key}" for key in keys]


def list_files(location: str) -> list[str]:
    """Names of the files below a folder or s3:// prefix, relative to it, sorted; none where there is no such place."""
    if is_s3(location):
        with _s3(location) as (bucket, key):
            return sorted(_below(bucket, key))
    root = Path(location).expanduser()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def state(location: str) -> str:
    """What is at a path, folder, glob or s3:// URI: another text where a file there has changed.

    Of S3's objects by their ETags, of files by their sizes and times. Under a glob of S3 every object counts whose key
    begins as it does, whether it matches or not.
    """
    if is_s3(location):
        with _s3(location) as (bucket, key):
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
    with _s3(uri) as (bucket, prefix):
        keys = {name: f"{prefix}/{name}".lstrip("/") for name in list_files(str(folder))}

        def upload(name: str) -> None:
            bucket.upload_file(str(folder / name), keys[name])

        _at_once(upload, [name for name in keys if name != last])
        _at_once(upload, [name for name in keys if name == last])
    return uri


def get_folder(location: str, target: Path) -> None:
    """Copy the files below a folder or s3:// prefix into the folder `target`."""
    with disk_errors(target):
        if is_s3(location):
            with _s3(location) as (bucket, key):
                _download(bucket, _below(bucket, key), target)
            return
        for name in list_files(location):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            # Contents alone: whoever reads a shared folder may be another user than who could read the originals.
            shutil.copyfile(Path(location).expanduser() / name, target / name)


def put_file(file: Path, location: str) -> None:
    """Copy a file to a path or s3:// key, whole or not at all; a file that is there is replaced."""
    if is_s3(location):
        with _s3(location) as (bucket, key):
            bucket.upload_file(str(file), key)
        return
    target = Path(location).expanduser()
    with disk_errors(target), written_aside(target) as aside:
        shutil.copyfile(file, aside)


def get_file(location: str, target: Path) -> None:
    """Copy one file from a path or s3:// key to `target`, whose folder exists."""
    with disk_errors(target):
        if is_s3(location):
            with _s3(location) as (bucket, key):
                bucket.download_file(key, str(target))
            return
        try:
            shutil.copyfile(Path(location).expanduser(), target)
        except FileNotFoundError:
            raise UserError(f"{location}: no such file") from None


def delete_file(location: str) -> None:
    """Delete a file by path or s3:// key; it may be gone already. An empty folder that is left goes too."""
    if is_s3(location):
        with _s3(location) as (bucket, key):
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
    with _s3(location) as (bucket, key):
        for found in bucket.objects.filter(Prefix=f"{key.rstrip('/')}/"):
            found.delete()  # one by one: not every store that speaks S3 takes a list of keys


@contextmanager
def short_waits() -> Iterator[None]:
    """Within the block, S3 has seconds to answer and not minutes: for a caller that must soon know that it is away."""
    token = _config.set(Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}))
    try:
        yield
    finally:
        _config.reset(token)


def _exactly(bucket: Any, key: str) -> dict[str, Any]:
    """The object of this very key under an empty name, where there is one; it comes first of those with this prefix."""
    first = [*bucket.objects.filter(Prefix=key).limit(1)] if key and not key.endswith("/") else []
    return {"": first[0]} if first and first[0].key == key else {}


def _below(bucket: Any, key: str) -> dict[str, Any]:
    """The objects below an s3:// prefix by their names relative to it, none of which leads out of a folder."""
    prefix = f"{key.rstrip('/')}/" if key else ""
    objects = {
        found.key.removeprefix(prefix): found
        for found in bucket.objects.filter(Prefix=prefix)
        if not found.key.endswith("/")
    }
    for name in objects:
        if ".." in Path(name).parts or Path(name).is_absolute():
            where = f"{S3}{bucket.name}/{key}"
            raise UserError(f"{where}: the object key {name!r} leads out of the prefix; rename the object")
    return objects


def _download(bucket: Any, objects: Mapping[str, Any], target: Path) -> None:
    """Objects by their names below `target`; an empty name is `target` itself."""

    def download(name: str) -> None:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        bucket.download_file(objects[name].key, str(file))

    _at_once(download, [*objects])


def _at_once(copy: Callable[[str], None], names: list[str]) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(copy, names))


@contextmanager
def _s3(location: str) -> Iterator[tuple[Any, str]]:
    """The bucket of an s3:// URI (boto3's resource) and the key; what S3 refuses within the block is a `UserError`."""
    name, _, key = location.removeprefix(S3).partition("/")
    if not name:
        raise UserError(f"{location}: names no bucket; write s3://bucket/key")
    try:
        style = Config(s3={"addressing_style": os.environ.get(ADDRESSING_VARIABLE) or "auto"})
        waits = _config.get()
        bucket = boto3.resource("s3", config=style if waits is None else style.merge(waits)).Bucket(name)
    except (ValueError, BotoCoreError) as error:  # an endpoint that is no address, an unknown style
        raise UserError(f"S3: {error}; check AWS_ENDPOINT_URL and {ADDRESSING_VARIABLE}") from None
    try:
        yield bucket, key
    except (BotoCoreError, Boto3Error, ClientError) as error:
        # An upload's failure comes wrapped around S3's answer.
        answer = error if isinstance(error, ClientError) else error.__context__
        if not isinstance(answer, ClientError):
            raise UserError(f"{location}: S3 failed: {one_line(error)}; check the AWS_* environment") from error
        code = answer.response.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise UserError(f"{location}: no such bucket or object ({code})") from error
        if code in _DENIED:
            raise UserError(
                f"{location}: access denied ({code}); check the AWS_* credentials and the policy"
            ) from error
        raise UserError(f"{location}: S3 refused: {one_line(answer)}") from error
