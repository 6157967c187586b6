"""What a stage hands on when its output lies elsewhere: a folder with a pointer to it.

    reference.json   {"source": "s3://bucket/prefix/artifacts/rest-rl-5f3a…", "sha256": …, "bytes": …, "files": {…}}

The pointer holds the hash of every file: whoever reads the output gets what was written, or an error that names the
object. A pointer to a model that no stage has made (a hub id, a folder) has its source alone.

Below `storage.location`:

    artifacts/<stage>-<hash>/    outputs, named by their content: written once, never changed
    runs/<pipeline run>/         scratch space of one run, deleted when it has succeeded: checkpoints, TrainJobs

Every function raises `UserError` where a location refuses, the disk is full, or an output is not what was written.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from rest_core import manifest, storage
from rest_core.disk import disk_errors
from rest_core.errors import UserError
from rest_core.operations.names import run_key

FILE_NAME = "reference.json"
_STAYS = (manifest.FILE_NAME, "metrics.json", FILE_NAME)  # small, and read without the output

_AGAIN = "run the stage that made it again (Kubeflow Pipelines, whose cache may still name it: rest submit --no-cache)"

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Pointer(BaseModel):
    """Where a folder's content lies. `files`: SHA-256 by relative path; None for a model that no stage has made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    sha256: _Sha256 | None = None
    bytes: int | None = None
    files: dict[str, _Sha256] | None = None


def write(folder: Path, pointer: Pointer) -> None:
    """Make `folder` stand for the content that `pointer` points to."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE_NAME).write_text(pointer.model_dump_json(indent=2, exclude_none=True) + "\n", encoding="utf-8")


def read(folder: Path) -> Pointer | None:
    """The pointer in `folder`; None where it holds its content itself."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        pointer = Pointer.model_validate_json(path.read_bytes())
        if pointer.files is not None and manifest.sha256_contents(pointer.files) != pointer.sha256:
            raise ValueError("its hashes do not belong together")
    except ValueError:  # pydantic's own is one
        raise UserError(f"{path}: not a reference to a model or output; {_AGAIN}") from None
    return pointer


def is_base_model(folder: Path) -> bool:
    """Whether a policy folder stands for a model that no stage has made."""
    pointer = read(folder)
    return pointer is not None and pointer.files is None


def store(folder: Path, location: str, stage: str, files: Mapping[str, str] | None = None) -> Pointer:
    """Copy a folder, which stays, to its place below `location`, as far as it is not there yet.

    Args:
        folder: the content.
        location: an s3:// prefix or a folder.
        stage: names the place, together with the hash of the content.
        files: what `manifest.contents` gives for `folder`, where that is known.
    """
    files = manifest.contents(folder) if files is None else files
    digest = manifest.sha256_contents(files)
    source = f"{location.rstrip('/')}/artifacts/{stage}-{digest[:16]}"
    there = storage.list_files(source)
    if not there:
        storage.upload_folder(folder, source)
    else:  # left by an upload that was cut off, or by somebody who has deleted a file
        for name in (*files, manifest.FILE_NAME):
            if name not in there and (folder / name).is_file():
                storage.put_file(folder / name, f"{source}/{name}")
    size = sum((folder / name).stat().st_size for name in files)
    return Pointer(source=source, sha256=digest, bytes=size, files=dict(files))


def deliver(folder: Path, location: str, stage: str, files: Mapping[str, str]) -> None:
    """`store` a stage's complete output folder, and leave only a pointer to it."""
    write(folder, store(folder, location, stage, files))
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in _STAYS:
            path.unlink()


def fetch(folder: Path) -> Path:
    """The folder with the content of `folder`: itself, or the one that it points to, checked.

    An s3:// prefix is downloaded below the cache folder, once; a folder is used where it lies. Processes of one machine
    wait for the first of them. Files are hashed once, and again when their size or time of change is another.
    """
    pointer = read(folder)
    if pointer is None or pointer.files is None or pointer.sha256 is None:
        return folder
    cache = storage.cache_folder() / "artifacts"
    # Not in the cache, which may be a volume without locks.
    with FileLock(Path(tempfile.gettempdir()) / f"rest-{os.getuid()}-{pointer.sha256[:16]}.lock"):
        if not storage.list_files(pointer.source):
            raise UserError(f"{pointer.source}: this output is not there any more; {_AGAIN}")
        place = storage.fetch(pointer.source, cache)
        checked = cache / "checked" / pointer.sha256
        state = _state(place, pointer.source, pointer.files)
        if not checked.is_file() or checked.read_text(encoding="utf-8") != state:
            _check(place, pointer.source, pointer.files)
            with disk_errors(checked):
                checked.parent.mkdir(parents=True, exist_ok=True)
                checked.write_text(state, encoding="utf-8")
    return place


def scratch(location: str, pipeline_run: str) -> str:
    """The scratch space of one run below `location`: for as long as the run may be retried."""
    return f"{location.rstrip('/')}/runs/{run_key(pipeline_run)}"


def remove_scratch(location: str, pipeline_run: str) -> None:
    """Delete the scratch space of a run that has succeeded; nothing happens where there is none."""
    storage.delete_folder(scratch(location, pipeline_run))


def _state(place: Path, source: str, files: Mapping[str, str]) -> str:
    """The place with the size and the time of change of each file: as long as it is the same, a check holds.

    Raises:
        UserError: a file is missing, or one is there that was not written, and that transformers might load.
    """
    for name in storage.list_files(str(place)):
        hidden = any(part.startswith(".") for part in Path(name).parts)  # file systems' own: nobody reads them
        if name not in files and Path(name).name != manifest.FILE_NAME and not hidden:
            raise UserError(f"{source}/{name}: was not written there by the stage; remove it")
    lines = [str(place)]
    for name in files:
        try:
            found = (place / name).stat()
        except FileNotFoundError:
            raise UserError(f"{source}/{name}: is not there any more; {_AGAIN}") from None
        lines.append(f"{found.st_size} {found.st_mtime_ns} {name}")
    return "\n".join(lines)


def _check(place: Path, source: str, files: Mapping[str, str]) -> None:
    for name, digest in files.items():
        with disk_errors(place / name):
            found = manifest.sha256_file(place / name)
        if found != digest:
            raise UserError(f"{source}/{name}: is not what was written there (SHA-256 differs); {_AGAIN}")
