"""ToolRL's and API-Bank's public files, downloaded once and checked.

The files lie in ToolRL's repository (Apache-2.0) at a pinned commit; the git blob id of each is known, so that what
arrives is exactly what was published then, or nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path

from rest_core.errors import UserError, nearest
from rest_core.storage import cache_folder, disk_errors, written_aside

PREFIX = "published:"
REPOSITORY = "qiancheng0/ToolRL"
COMMIT = "8cee13ec0ca72f0461da372a93a6fd8140dbb840"
RAW_URL = "https://raw.githubusercontent.com"
TIMEOUT_S = 15.0  # for the connection and for each read

_API_BANK = "benchmarks/API-Bank"
# name → (path in the repository, git blob id)
FILES = {
    "toolrl/rlla_4k/train.parquet": ("dataset/rlla_4k/train.parquet", "0ddc730c556e4d26449dbdb55a1b28be824a8bfe"),
    "toolrl/rlla_4k/test.parquet": ("dataset/rlla_4k/test.parquet", "ccdac1cc0112fb54dd68cbc88d9abfe28ce3d749"),
    "toolrl/rlla_sft.json": ("dataset/rlla_4k_raw/rlla_sft.json", "7264a450b031b23b6b54dae109bc81b7ff7b929f"),
    "api-bank/level-1-api_processed.json": (
        f"{_API_BANK}/level-1-api_processed.json",
        "cea552d0ea2215754c26039376eff04ae5d87624",
    ),
    "api-bank/level-2-api_processed.json": (
        f"{_API_BANK}/level-2-api_processed.json",
        "630e6ff5e5e5b3482ac7041a83880261a247a195",
    ),
    "api-bank/level-3-api_processed.json": (
        f"{_API_BANK}/level-3-api_processed.json",
        "5d80fb964e2d04ad71673d3d621933ab33f97c2d",
    ),
}

log = logging.getLogger(__name__)


class Unreachable(UserError):
    """The network or the server is away; what needs the file may be skipped."""


def fetch(location: str, *, cache: Path | None = None) -> Path:
    """The local path of `published:NAME`; a name that stands for several files gives their folder.

    Downloads what is not in the cache yet.

    Args:
        location: e.g. `published:toolrl/rlla_4k/train.parquet` or `published:api-bank`.
        cache: folder for downloads; default `rest_core.storage.cache_folder()`.

    Raises:
        Unreachable: a file is not in the cache and cannot be downloaded.
        UserError: the name is unknown, a download is not the published file, or the disk is full.
    """
    folder = cache or cache_folder()
    for known in _names(location):
        _fetch_file(known, folder / known)
    return folder / _name(location)


def require(location: str, *, cache: Path | None = None) -> None:
    """Whether `fetch` would find `published:NAME`, without a download.

    Raises:
        Unreachable: a file is not in the cache and cannot be downloaded.
        UserError: the name is unknown.
    """
    for known in _names(location):
        if not _is_whole(known, (cache or cache_folder()) / known):
            _answer(urllib.request.Request(_url(known), method="HEAD"))


def _name(location: str) -> str:
    return location.removeprefix(PREFIX).rstrip("/")


def _names(location: str) -> list[str]:
    name = _name(location)
    names = [known for known in FILES if known == name or known.startswith(f"{name}/")]
    if not names:
        raise UserError(
            f"{location}: nothing is published under this name{nearest(name, [*FILES, 'api-bank'])} "
            f"(known: api-bank, {', '.join(FILES)})"
        )
    return names


def git_blob_id(content: bytes) -> str:
    """Git's name for a file's content: SHA-1 of `blob <length>\\0` + content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _fetch_file(name: str, target: Path) -> None:
    if _is_whole(name, target):
        return
    path, blob = FILES[name]
    url = _url(name)
    log.info("downloading %s", url)
    content = _answer(urllib.request.Request(url))
    if (found := git_blob_id(content)) != blob:
        raise UserError(
            f"{url}: not the published {path} (git blob {found}, expected {blob}); check for a proxy that rewrites"
        )
    with disk_errors(target):
        target.unlink(missing_ok=True)  # a damaged copy
        with written_aside(target) as aside:
            aside.write_bytes(content)


def _is_whole(name: str, target: Path) -> bool:
    return target.is_file() and git_blob_id(target.read_bytes()) == FILES[name][1]


def _url(name: str) -> str:
    return f"{RAW_URL}/{REPOSITORY}/{COMMIT}/{FILES[name][0]}"


def _answer(request: urllib.request.Request) -> bytes:
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            content: bytes = answer.read()
            return content
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise Unreachable(
            f"{request.full_url}: cannot be downloaded ({error}); give a local path or check the network"
        ) from error
