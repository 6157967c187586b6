"""What a stage hands on when its output lies elsewhere: a folder that refers to it.

    reference.json   {"source": "s3://bucket/prefix/artifacts/rest-rl-5f3a…", "sha256": …, "bytes": …, "files": {…}}

Of a stage's output the reference holds the hash of every file: whoever reads it gets what was written, or an error that
names the object. A model that no stage has made (a hub id, a folder) is referred to by its source alone.

Below `storage.location`:

    artifacts/<stage>-<hash>/    outputs, named by their content: written once, never changed
    runs/<pipeline run>/         work of one run, of no use when it has succeeded: checkpoints (rl.mirror), TrainJobs
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from rest_core import manifest, storage
from rest_core.errors import UserError
from rest_core.operations.names import run_key

FILE_NAME = "reference.json"
_STAYS = (manifest.FILE_NAME, "metrics.json")  # small, and read without the output

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Reference(BaseModel):
    """Where a folder's content lies. `files`: SHA-256 by relative path; None where nothing is known of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    sha256: _Sha256 | None = None
    bytes: int | None = None
    files: dict[str, _Sha256] | None = None


def write(folder: Path, reference: Reference) -> None:
    """Make `folder` stand for what `reference` refers to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(reference.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")


def read(folder: Path) -> Reference | None:
    """What `folder` refers to; None where it holds its content itself.

    Raises:
        UserError: the reference cannot be read.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        reference = Reference.model_validate_json(path.read_bytes())
        if reference.files is not None and manifest.sha256_contents(reference.files) != reference.sha256:
            raise ValueError("its hashes do not belong together")
    except ValueError:  # pydantic's own is one
        raise UserError(f"{path}: not a reference to a model or output; run the stage that made it again") from None
    return reference


def is_base_model(folder: Path) -> bool:
    """Whether a policy folder stands for a model that no stage has made."""
    reference = read(folder)
    return reference is not None and reference.files is None


def store(folder: Path, location: str, stage: str, files: Mapping[str, str] | None = None) -> Reference:
    """Copy a folder to its place below `location`, as far as it is not there yet; returns the reference to it.

    Args:
        folder: is not changed.
        location: an s3:// prefix or a folder.
        stage: names the place, together with the hash of the content.
        files: what `manifest.contents` gives for `folder`, where that is known.

    Raises:
        UserError: the location refuses, or the disk is full.
    """
    files = manifest.contents(folder) if files is None else files
    digest = manifest.sha256_contents(files)
    source = f"{location.rstrip('/')}/artifacts/{stage}-{digest[:16]}"
    there = set(storage.list_files(source))
    if not there:
        storage.upload_folder(folder, source)
    else:  # what an upload that was cut off, or somebody who has deleted a file, has left
        own = [manifest.FILE_NAME] if (folder / manifest.FILE_NAME).is_file() else []
        for name in (*files, *own):  # the manifest last
            if name not in there:
                storage.put_file(folder / name, f"{source}/{name}")
    size = sum((folder / name).stat().st_size for name in files)
    return Reference(source=source, sha256=digest, bytes=size, files=dict(files))


def deliver(folder: Path, location: str, stage: str, files: Mapping[str, str]) -> None:
    """`store` a stage's complete output folder, and leave only what refers to it.

    Raises:
        UserError: as `store`; the folder is as it was.
    """
    write(folder, store(folder, location, stage, files))
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in (*_STAYS, FILE_NAME):
            path.unlink()


def fetch(folder: Path) -> Path:
    """The folder with the content of `folder`: itself, or what it refers to, checked.

    An s3:// prefix is downloaded below the cache folder, once; a folder is used where it lies. Processes of one machine
    wait for the first of them. Files are hashed once, and again when their size or time of change is another.

    Raises:
        UserError: an object is missing, is not what was written, was not written there, or cannot be read.
    """
    reference = read(folder)
    if reference is None or reference.files is None or reference.sha256 is None:
        return folder
    cache = storage.cache_folder() / "artifacts"
    with _alone(reference.sha256):
        place = storage.fetch(reference.source, cache)
        checked = cache / "checked" / reference.sha256
        state = _state(place, reference)
        if checked.is_file() and checked.read_text(encoding="utf-8") == state:
            return place
        _check(place, reference)
        with storage.disk_errors(checked):
            checked.parent.mkdir(parents=True, exist_ok=True)
            checked.write_text(state, encoding="utf-8")
        return place


def scratch(location: str, pipeline_run: str) -> str:
    """Where the work of one run lies below `location`: for as long as the run may be tried again."""
    return f"{location.rstrip('/')}/runs/{run_key(pipeline_run)}"


def remove_scratch(location: str, pipeline_run: str) -> None:
    """Delete the work of a run that has succeeded; nothing happens where there is none.

    Raises:
        UserError: the location refuses.
    """
    storage.delete_folder(scratch(location, pipeline_run))


def _state(place: Path, reference: Reference) -> str:
    """The place with the size and the time of change of each file: what a check of their content holds for.

    Raises:
        UserError: a file is missing, or one is there that was not written: a reader such as transformers takes it up.
    """
    assert reference.files is not None
    for name in storage.list_files(str(place)):
        hidden = any(part.startswith(".") for part in Path(name).parts)  # file systems' own: nobody reads them
        if name not in reference.files and Path(name).name != manifest.FILE_NAME and not hidden:
            raise UserError(f"{reference.source}/{name}: was not written there by the stage; remove it")
    lines = [str(place)]
    for name in reference.files:
        try:
            found = (place / name).stat()
        except FileNotFoundError:
            raise UserError(
                f"{reference.source}/{name}: is not there any more; run the stage that made it again"
            ) from None
        lines.append(f"{found.st_size} {found.st_mtime_ns} {name}")
    return "\n".join(lines)


def _check(place: Path, reference: Reference) -> None:
    assert reference.files is not None
    for name, digest in reference.files.items():
        path = place / name
        try:
            found = manifest.sha256_file(path)
        except PermissionError:
            raise UserError(f"{path}: this user may not read it; change its permissions") from None
        if found != digest:
            raise UserError(
                f"{reference.source}/{name}: is not what was written there (SHA-256 differs); run the stage that made "
                "it again"
            )


@contextmanager
def _alone(digest: str) -> Iterator[None]:
    """One process of this machine at a time; the lock is not in the cache, which may be a volume without locks."""
    path = Path(tempfile.gettempdir()) / f"rest-{os.getuid()}-{digest[:16]}.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
