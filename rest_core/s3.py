"""Objects of S3 by boto3: what a key stands for, and downloads that are what S3 holds.

boto3 reads the standard environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_ENDPOINT_URL …) by itself, and checks what it
downloads where the store sends checksums. Not every store does, and none does for the parts of a large object; so each
download is held against the object's size and its ETag, or against the SHA-256 that it should have.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from rest_core.errors import UserError, one_line
from rest_core.manifest import sha256_file

S3 = "s3://"
ADDRESSING_VARIABLE = "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE"
"""auto, path or virtual: boto3 has no variable for it, and MLflow's own S3 client reads this one."""
_AT_ONCE = 8  # files of a folder; boto3 copies the parts of a large one at once besides
_TRIES = 3  # downloads of an object that arrives damaged
_MD5 = re.compile("[0-9a-f]{32}")
_MD5_OF_PARTS = re.compile("([0-9a-f]{32})-([0-9]+)")
_DENIED = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"}
_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_config: ContextVar[Config | None] = ContextVar("s3_config", default=None)


@contextmanager
def opened(location: str) -> Iterator[tuple[Any, str]]:
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


@contextmanager
def short_waits() -> Iterator[None]:
    """Within the block, S3 has seconds to answer and not minutes: for a caller that must soon know that it is away."""
    token = _config.set(Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2}))
    try:
        yield
    finally:
        _config.reset(token)


def objects(bucket: Any, key: str) -> dict[str, Any]:
    """What a key stands for: the object of this very key under an empty name, else those `below` it; there may be none.

    An empty object beside others below its key is the mark of a folder, which tools leave.
    """
    first = [*bucket.objects.filter(Prefix=key).limit(1)] if key and not key.endswith("/") else []
    exact = {"": first[0]} if first and first[0].key == key else {}
    if exact and exact[""].size > 0:
        return exact
    return below(bucket, key) or exact


def below(bucket: Any, key: str) -> dict[str, Any]:
    """The objects below an s3:// prefix by their names relative to it, each of which can be a file's in one folder."""
    prefix = f"{key.rstrip('/')}/" if key else ""
    listed = without_marks(bucket.objects.filter(Prefix=prefix))
    found = {one.key.removeprefix(prefix): one for one in listed}
    folders = {str(parent) for name in found for parent in PurePosixPath(name).parents}
    for name in found:
        path = PurePosixPath(name)
        if ".." in path.parts or path.is_absolute():
            problem = "leads out of the prefix"
        elif str(path) != name or name in folders:
            problem = "cannot be a file's name there"
        else:
            continue
        raise UserError(f"{S3}{bucket.name}/{key}: the object key {name!r} {problem}; rename the object")
    return found


def without_marks(listed: Any) -> list[Any]:
    """Objects of a listing that are files: not the empty ones that stand for a folder, with a slash or without one."""
    listed = list(listed)
    folders = {str(parent) for one in listed for parent in PurePosixPath(one.key).parents}
    return [one for one in listed if not one.key.endswith("/") and (one.size > 0 or one.key not in folders)]


def download(bucket: Any, found: Mapping[str, Any], target: Path, sha256: Mapping[str, str]) -> None:
    """Objects by their names below `target` (an empty name is `target` itself), each as S3 holds it.

    Args:
        bucket: of `opened`.
        found: from `objects` or `below`.
        target: the file or folder.
        sha256: of the files that are known to have this hash, by their names.

    Raises:
        UserError: one arrives damaged again and again, or is not what has this hash.
    """

    def one(name: str) -> None:
        file = target / name
        file.parent.mkdir(parents=True, exist_ok=True)
        _download(bucket, found[name], file, sha256.get(name))

    at_once(one, [*found])


def is_intact(bucket: Any, found: Any, file: Path, sha256: str | None) -> bool:
    """Whether a file is what S3 holds of an object, as far as its size and its ETag tell, or has this hash."""
    if not file.is_file() or file.stat().st_size != found.size:
        return False
    return sha256_file(file) == sha256 if sha256 is not None else _has_tag(bucket, found, file) is not False


def at_once(copy: Callable[[str], None], names: list[str]) -> None:
    """Call `copy` for several files at the same time."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(copy, names))


def _download(bucket: Any, found: Any, file: Path, sha256: str | None) -> None:
    arrived: set[str] = set()
    alike = False
    while not alike and len(arrived) < _TRIES:
        bucket.download_file(found.key, str(file))
        if is_intact(bucket, found, file, sha256):
            return
        alike = (digest := sha256_file(file)) in arrived
        arrived.add(digest)
    where, size = f"{S3}{bucket.name}/{found.key}", file.stat().st_size
    if sha256 is not None and alike and size == found.size and _has_tag(bucket, found, file) is not False:
        raise UserError(f"{where}: is not what was written there (SHA-256 differs); run the stage that made it again")
    # An ETag may be something else than an MD5, for example of an encrypted object: then all downloads are alike.
    if sha256 is None and alike and size == found.size:
        return
    problem = f"{size} bytes and not {found.size}" if size != found.size else "other bytes than its checksum is of"
    raise UserError(
        f"{where}: arrives damaged ({problem}); start again, and where that does not help, check the network, proxies "
        "and the store"
    )


def _has_tag(bucket: Any, found: Any, file: Path) -> bool | None:
    """Whether a file has the MD5 in an object's ETag; None where that says nothing of the content."""
    tag = found.e_tag.strip('"')
    if _MD5.fullmatch(tag):
        return bool(_md5(file).hexdigest() == tag)
    if (parts := _MD5_OF_PARTS.fullmatch(tag)) is None:
        return None
    # The MD5 of the parts' MD5s, by which it was uploaded; all but the last have one size.
    try:
        first = bucket.meta.client.head_object(Bucket=bucket.name, Key=found.key, PartNumber=1)
    except ClientError:  # not every store knows parts
        return None
    size, number = first["ContentLength"], int(parts[2])
    if "aws:kms" in first.get("ServerSideEncryption", "") or size == 0 or -(-found.size // size) != number:
        return None
    whole = hashlib.md5(usedforsecurity=False)
    for start in range(0, found.size, size):
        whole.update(_md5(file, start, size).digest())
    return whole.hexdigest() == parts[1]


def _md5(file: Path, start: int = 0, length: int = -1) -> Any:
    digest = hashlib.md5(usedforsecurity=False)
    with file.open("rb") as stream:
        stream.seek(start)
        while length != 0 and (block := stream.read(2**20 if length < 0 else min(2**20, length))):
            digest.update(block)
            length -= len(block) if length > 0 else 0
    return digest
