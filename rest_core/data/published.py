"""ToolRL's and API-Bank's public files, downloaded once and checked.

The files lie in ToolRL's repository (Apache-2.0) at a pinned commit; the git blob id of each is known, so that what
arrives is exactly what was published then, or nothing.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import urllib.request
from pathlib import Path
from typing import Literal

from rest_core.disk import disk_errors, written_aside
from rest_core.errors import UserError, nearest
from rest_core.storage import cache_folder

PREFIX = "published:"
REPOSITORY = "qiancheng0/ToolRL"
COMMIT = "8cee13ec0ca72f0461da372a93a6fd8140dbb840"
RAW_URL = "https://raw.githubusercontent.com"
TIMEOUT_S = 15.0  # for the connection and for each read

# name → (path in the repository, git blob id)
FILES = {
    "toolrl/rlla_4k/train.parquet": ("dataset/rlla_4k/train.parquet", "0ddc730c556e4d26449dbdb55a1b28be824a8bfe"),
    "toolrl/rlla_4k/test.parquet": ("dataset/rlla_4k/test.parquet", "ccdac1cc0112fb54dd68cbc88d9abfe28ce3d749"),
    "toolrl/rlla_sft.json": ("dataset/rlla_4k_raw/rlla_sft.json", "7264a450b031b23b6b54dae109bc81b7ff7b929f"),
    **{
        f"api-bank/level-{level}-api_processed.json": (f"benchmarks/API-Bank/level-{level}-api_processed.json", blob)
        for level, blob in (
            (1, "cea552d0ea2215754c26039376eff04ae5d87624"),
            (2, "630e6ff5e5e5b3482ac7041a83880261a247a195"),
            (3, "5d80fb964e2d04ad71673d3d621933ab33f97c2d"),
        )
    },
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
    cache = cache or cache_folder()
    for name in _names(location):
        if not _is_whole(name, cache / name):
            _download(name, cache / name)
    return cache / location.removeprefix(PREFIX).rstrip("/")


def require(location: str, *, cache: Path | None = None) -> None:
    """Raise what `fetch` would raise for a wrong name or a server that is away, without a download."""
    for name in _names(location):
        if not _is_whole(name, (cache or cache_folder()) / name):
            _request(name, "HEAD")


def _names(location: str) -> list[str]:
    name = location.removeprefix(PREFIX).rstrip("/")
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


def _download(name: str, target: Path) -> None:
    url, content = _request(name, "GET")
    path, blob = FILES[name]
    if (found := git_blob_id(content)) != blob:
        raise UserError(
            f"{url}: not the published {path} (git blob {found}, expected {blob}); check for a proxy that rewrites"
        )
    with disk_errors(target), written_aside(target) as aside:
        aside.write_bytes(content)


def _is_whole(name: str, target: Path) -> bool:
    return target.is_file() and git_blob_id(target.read_bytes()) == FILES[name][1]


def _request(name: str, method: Literal["GET", "HEAD"]) -> tuple[str, bytes]:
    """The address of a published file, and its content (none with HEAD)."""
    url = f"{RAW_URL}/{REPOSITORY}/{COMMIT}/{FILES[name][0]}"
    if method == "GET":
        log.info("downloading %s", url)
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=TIMEOUT_S) as answer:
            return url, answer.read()
    except (OSError, http.client.HTTPException) as error:  # urllib's own errors are OSErrors
        raise Unreachable(f"{url}: cannot be downloaded ({error}); give a local path or check the network") from error
