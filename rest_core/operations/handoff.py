"""What a stage hands on: a folder with its output, or with a pointer to where that lies.

    reference.json   {"source": "s3://bucket/prefix/artifacts/rest-rl-5f3a…", "sha256": …, "bytes": …, "files": {…}}

The pointer holds the hash of every file, and so does the manifest of a folder that has its output itself: whoever reads
the output gets what was written, or an error that names the file. A pointer to a model that no stage has made (a hub
id, a folder) has its source alone.

Below `storage.location`:

    artifacts/<stage>-<hash>/    outputs, named by their content: written once, never changed
    runs/<pipeline run>/         scratch space of one run, deleted when it has succeeded: checkpoints, TrainJobs

Every function raises `UserError` where a location refuses, the disk is full, or an output is not what was written.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from rest_core import checked, manifest, storage
from rest_core.disk import disk_errors, remove, write_file
from rest_core.errors import UserError
from rest_core.operations.names import run_key

FILE_NAME = "reference.json"
# By their endings, files that transformers or datasets may load because they are there.
_READ = (".json", ".jsonl", ".jinja", ".model", ".parquet", ".py", ".safetensors", ".txt", ".bin")
_MAKE_AGAIN = (
    "run the stage that made it again (Kubeflow Pipelines, whose cache may still name it: rest submit --no-cache)"
)
_STAYS = (manifest.FILE_NAME, "metrics.json", FILE_NAME)  # small, and read without the output

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
    write_file(folder / FILE_NAME, pointer.model_dump_json(indent=2, exclude_none=True) + "\n")


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
        raise UserError(f"{path}: not a reference to a model or output; {_MAKE_AGAIN}") from None
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
        if path.name not in _STAYS:
            remove(path)


def fetch(folder: Path) -> Path:
    """The folder with the content of `folder`: itself, or the one that it points to, checked.

    An s3:// prefix is downloaded below the cache folder, once; a folder is used where it lies. Processes of one machine
    wait for the first of them. Files are hashed once, and again when their size or time of change is another. A user's
    own folder, without a manifest, is taken as it is.
    """
    pointer = read(folder)
    if pointer is None:
        if (files := manifest.files(folder)) is not None:
            with _one_process(str(folder.absolute())):
                _require_own(folder, files)
        return folder
    if pointer.files is None or pointer.sha256 is None:
        return folder
    with _one_process(pointer.sha256):
        if not storage.list_files(pointer.source):
            raise UserError(f"{pointer.source}: this output is not there any more; {_MAKE_AGAIN}")
        place = storage.fetch(pointer.source, storage.cache_folder() / "artifacts", sha256=pointer.files)
        _require_names(place, pointer.source, pointer.files, _MAKE_AGAIN)
        if not storage.is_s3(pointer.source):
            _require_hashes(place, pointer.source, pointer.files, _MAKE_AGAIN)
    return place


def scratch(location: str, pipeline_run: str) -> str:
    """The scratch space of one run below `location`: for as long as the run may be retried."""
    return f"{location.rstrip('/')}/runs/{run_key(pipeline_run)}"


def remove_scratch(location: str, pipeline_run: str) -> None:
    """Delete the scratch space of a run that has succeeded; nothing happens where there is none."""
    storage.delete_folder(scratch(location, pipeline_run))


@contextmanager
def _one_process(what: str) -> Iterator[None]:
    # Not in the cache, which may be a volume without locks.
    key = hashlib.sha256(what.encode()).hexdigest()[:16]
    lock = Path(tempfile.gettempdir()) / f"rest-{os.getuid()}-{key}.lock"
    with FileLock(lock):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is held, as in `disk.held`


def _require_own(folder: Path, files: Mapping[str, str]) -> None:
    """Raise `UserError` unless a stage's folder holds what the stage has left there."""
    # The copy of a checkpoint in the registry is flat: what lay in folders is not in it.
    files = {name: digest for name, digest in files.items() if (folder / name).parent.is_dir()}
    mine = folder / manifest.FILE_NAME
    remedy = f"run the stage again, or, to use the folder as one of your own, remove {mine}"
    _require_names(folder, str(folder), files, remedy)
    _require_hashes(folder, str(folder), files, remedy)


def _require_names(place: Path, source: str, files: Mapping[str, str], remedy: str) -> None:
    """Raise `UserError` unless a folder has these files, and none besides that would be read."""
    for name in storage.list_files(str(place)):
        path = Path(name)
        hidden = any(part.startswith(".") for part in path.parts)  # file systems' own: nobody reads them
        if name not in files and path.name != manifest.FILE_NAME and path.suffix in _READ and not hidden:
            raise UserError(f"{source}/{name}: was not written there by the stage; remove it")
    for name in files:
        if not (place / name).is_file():
            raise UserError(f"{source}/{name}: is not there any more; {remedy}")


def _require_hashes(place: Path, source: str, files: Mapping[str, str], remedy: str) -> None:
    """Raise `UserError` unless each file of a folder has its SHA-256; read once, and again when it has changed."""
    record = storage.cache_folder() / "checked" / hashlib.sha256(str(place.absolute()).encode()).hexdigest()
    state = checked.state(place, files)
    if checked.holds(record, state):
        return
    for name, digest in files.items():
        with disk_errors(place / name):
            found = manifest.sha256_file(place / name)
        if found != digest:
            raise UserError(f"{source}/{name}: is not what was written there (SHA-256 differs); {remedy}")
    checked.note(record, state)
