"""Files and folders by path or s3:// URI.

S3 goes through boto3, which reads the standard environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL …) by
itself. What is downloaded is kept under a name made of the objects' ETags: it is fetched once, and never stale.
"""

from __future__ import annotations

import errno
import fnmatch
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rest_core.errors import UserError
from rest_core.manifest import FILE_NAME as MANIFEST

S3 = "s3://"
_WILDCARDS = "*?["
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

    Raises:
        UserError: it does not exist, access is denied, the endpoint is away, or the disk is full.
    """
    if not is_s3(location):
        path = Path(location).expanduser()
        if not path.exists():
            raise UserError(f"{location}: no such file or folder; check the path")
        return path
    bucket, key = _split(location)
    with _s3_errors(location), disk_errors(cache):
        client = _client()
        objects = [found for found in _list(client, bucket, key) if not key or found.key == key]
        is_file = bool(key) and bool(objects)
        if not is_file:
            prefix = f"{key.rstrip('/')}/" if key else ""
            objects = [found for found in _list(client, bucket, prefix) if not found.key.endswith("/")]
        if not objects:
            raise UserError(f"{location}: no such object or prefix; check bucket and key")
        state = hashlib.sha256("\n".join([bucket, *(f"{o.key} {o.etag}" for o in objects)]).encode()).hexdigest()
        target = cache / "s3" / state[:32] / Path(key.rstrip("/") or bucket).name
        if target.exists():
            return target
        with written_aside(target) as aside:
            for found in objects:
                inner = "" if is_file else found.key[len(prefix) :]
                _require_inside(inner, location)
                file = aside / inner if inner else aside
                file.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, found.key, str(file))
    return target


def expand(location: str) -> list[str]:
    """Every location that a glob, or an s3:// prefix or glob, stands for, sorted; any other location alone.

    Raises:
        UserError: nothing matches, or S3 refuses.
    """
    if not is_s3(location):
        if not any(mark in location for mark in _WILDCARDS) or Path(location).exists():
            return [location]
        # pathlib cannot glob an absolute pattern.
        found = sorted(glob.glob(str(Path(location).expanduser()), recursive=True))  # noqa: PTH207
        if not found:
            raise UserError(f"{location}: no file matches this pattern")
        return found
    bucket, key = _split(location)
    with _s3_errors(location):
        if any(mark in key for mark in _WILDCARDS):
            literal = key[: min(key.index(mark) for mark in _WILDCARDS if mark in key)]
            keys = [o.key for o in _list(_client(), bucket, literal) if fnmatch.fnmatchcase(o.key, key)]
        else:
            keys = [o.key for o in _list(_client(), bucket, key) if not key or o.key == key]
            if not key or not keys:
                keys = [o.key for o in _list(_client(), bucket, f"{key.rstrip('/')}/" if key else "")]
    keys = sorted(key for key in keys if not key.endswith("/"))
    if not keys:
        raise UserError(f"{location}: no object matches; check bucket and key")
    return [f"{S3}{bucket}/{key}" for key in keys]


def upload_folder(folder: Path, uri: str) -> str:
    """Copy the files of `folder` to a path or s3:// prefix; returns the location written, without a trailing slash.

    The manifest goes last, so that a destination with a manifest is complete.

    Raises:
        UserError: `folder` does not exist, a local destination exists, access is denied, or the disk is full.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; nothing to upload")
    uri = uri.rstrip("/")
    if not is_s3(uri):
        target = Path(uri).expanduser()
        if target.exists():
            raise UserError(f"{uri}: exists already; give a new destination")
        with disk_errors(target), written_aside(target) as aside:
            # Contents alone: whoever reads a shared folder may be another user than who could read the originals.
            shutil.copytree(folder, aside, copy_function=shutil.copyfile)
        return uri
    bucket, prefix = _split(uri)
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: (p.name == MANIFEST, p))
    with _s3_errors(uri):
        client = _client()
        for path in files:
            key = "/".join(part for part in (prefix, path.relative_to(folder).as_posix()) if part)
            client.upload_file(str(path), bucket, key)
    return uri


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a file or folder to; it takes `target`'s name when the block succeeds.

    A block that fails leaves nothing behind. Where another process has written `target` meanwhile, that one stays.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    aside = workspace / target.name
    try:
        yield aside
        try:
            aside.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
    finally:
        shutil.rmtree(workspace, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk and a refused write below `path` into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{path}: the disk is full; free some space and run again (nothing was kept)") from error
        if is_refused(error):
            raise UserError(f"{error.filename or path}: no permission to write; choose another folder") from error
        raise


def flush(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says so; safetensors tells the system's error in its text only."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(f"(os error {number})" in str(error) for number in full)


def is_refused(error: OSError) -> bool:
    """Whether the system lets this user not write or read there."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def list_files(location: str) -> list[str]:
    """Names of the files below a folder or s3:// prefix, relative to it, sorted; none where there is no such place.

    Raises:
        UserError: S3 refuses, there is no such bucket, or a name leads out of the prefix.
    """
    if not is_s3(location):
        root = Path(location).expanduser()
        return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    bucket, key = _split(location)
    prefix = f"{key.rstrip('/')}/" if key else ""
    with _s3_errors(location):
        found = _list(_client(), bucket, prefix)
    names = sorted(o.key[len(prefix) :] for o in found if not o.key.endswith("/"))
    for name in names:
        _require_inside(name, location)
    return names


def put_file(file: Path, location: str) -> None:
    """Copy a file to a path or s3:// key, whole or not at all; what is there is replaced.

    Raises:
        UserError: access is denied, the endpoint is away, or the disk is full.
    """
    if is_s3(location):
        bucket, key = _split(location)
        with _s3_errors(location):
            _client().upload_file(str(file), bucket, key)
        return
    target = Path(location).expanduser()
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.partial")
        try:
            shutil.copyfile(file, aside)
            flush(aside)
            aside.replace(target)
            flush(target.parent)
        finally:
            aside.unlink(missing_ok=True)


def get_file(location: str, target: Path) -> None:
    """Copy one file from a path or s3:// key to `target`, whose folder exists.

    Raises:
        UserError: there is no such file, access is denied, the endpoint is away, or the disk is full.
    """
    with disk_errors(target):
        if not is_s3(location):
            try:
                shutil.copyfile(Path(location).expanduser(), target)
            except FileNotFoundError:
                raise UserError(f"{location}: no such file") from None
            return
        bucket, key = _split(location)
        with _s3_errors(location):
            _client().download_file(bucket, key, str(target))


def delete_file(location: str) -> None:
    """Delete a file by path or s3:// key; it may be gone already. An empty folder that is left goes too."""
    if is_s3(location):
        bucket, key = _split(location)
        with _s3_errors(location):
            _client().delete_object(Bucket=bucket, Key=key)
        return
    path = Path(location).expanduser()
    with disk_errors(path):
        path.unlink(missing_ok=True)
        if path.parent.is_dir() and not any(path.parent.iterdir()):
            path.parent.rmdir()


def delete_folder(location: str) -> None:
    """Delete all files below a folder or s3:// prefix; nothing happens where there are none.

    Raises:
        UserError: the location refuses.
    """
    if not is_s3(location):
        path = Path(location).expanduser()
        with disk_errors(path), suppress(FileNotFoundError):
            shutil.rmtree(path)
        return
    bucket, key = _split(location)
    with _s3_errors(location):
        client = _client()
        for found in _list(client, bucket, f"{key.rstrip('/')}/"):
            # One by one: not every store that speaks S3 takes a list of keys.
            client.delete_object(Bucket=bucket, Key=found.key)


@contextmanager
def short_waits() -> Iterator[None]:
    """Within the block, S3 has seconds to answer and not minutes: for what has to say soon that it is away."""
    token = _config.set(Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}))
    try:
        yield
    finally:
        _config.reset(token)


@dataclass(frozen=True)
class _Object:
    key: str
    etag: str


def _client() -> Any:
    try:
        return boto3.client("s3", config=_config.get())
    except ValueError as error:  # boto3's word for an address that is none
        raise UserError(f"S3: {error}; check AWS_ENDPOINT_URL") from None


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri[len(S3) :].partition("/")
    if not bucket:
        raise UserError(f"{uri}: names no bucket; write s3://bucket/key")
    return bucket, key


def _list(client: Any, bucket: str, prefix: str) -> list[_Object]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [_Object(found["Key"], found["ETag"]) for page in pages for found in page.get("Contents", ())]


def _require_inside(name: str, location: str) -> None:
    """Refuse an object key that would lead out of a folder that it is copied to."""
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"{location}: the object key {name!r} leads out of the prefix; rename the object")


@contextmanager
def _s3_errors(location: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, Boto3Error, ClientError) as error:
        # An upload's failure comes wrapped; what S3 has said is below.
        answer = error if isinstance(error, ClientError) else error.__context__
        if not isinstance(answer, ClientError):
            raise UserError(
                f"{location}: S3 failed: {' '.join(str(error).split())}; check the AWS_* environment"
            ) from error
        code = answer.response.get("Error", {}).get("Code", "")
        if code in _MISSING:
            raise UserError(f"{location}: no such bucket or object ({code})") from error
        if code in _DENIED:
            raise UserError(
                f"{location}: access denied ({code}); check the AWS_* credentials and the policy"
            ) from error
        raise UserError(f"{location}: S3 refused: {' '.join(str(answer).split())}") from error
