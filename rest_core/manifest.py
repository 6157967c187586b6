"""`manifest.json`: what made a folder, so that lineage is read and not guessed.

Every folder that travels between stages carries one: the stage, its configuration, the hashes of its inputs and
files, the git commit, the image, the versions of the packages that matter, and counts. It is written last: a folder
that has one is complete, and on the disk.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rest_core.disk import flush, read_file, write_file
from rest_core.errors import UserError, one_line

FILE_NAME = "manifest.json"
IMAGE_VARIABLE = "REST_IMAGE"  # the reference of the pod's image, set by the pipeline (pipelines/placement.py)
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "peft", "kfp", "mlflow", "bfcl-eval")


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def contents(folder: Path) -> dict[str, str]:
    """Hex SHA-256 of every file below `folder` by its relative path, sorted; the manifest itself left out."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != FILE_NAME)
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in files}


def sha256_contents(files: Mapping[str, str]) -> str:
    """Hex SHA-256 over the relative paths and hashes that `contents` gives."""
    return hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in files.items()).encode()).hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hex SHA-256 of what `folder` holds: of its `contents`."""
    return sha256_contents(contents(folder))


def leaves(values: Mapping[str, Any], separator: str = ".") -> Iterator[tuple[str, Any]]:
    """The values in nested mappings, such as a configuration, by their paths; an empty mapping is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from ((f"{name}{separator}{path}", leaf) for path, leaf in leaves(value, separator))
        else:
            yield name, value


def git_commit() -> str | None:
    """The commit of the code that runs: REST_GIT_COMMIT (an image's build argument), else that of git."""
    if baked := os.environ.get("REST_GIT_COMMIT"):
        return baked
    top = Path(__file__).resolve().parent.parent
    done = subprocess.run(["git", "-C", str(top), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def package_versions() -> dict[str, str]:
    """Versions of the packages that decide a result, those that are installed."""
    versions = {}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def write(
    folder: Path,
    *,
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, Any],
    counts: dict[str, Any],
    files: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Flush and hash the files of `folder` and write its manifest last and atomically; returns the manifest.

    Args:
        files: what `contents` has given for the folder already, so that nothing is hashed twice.
    """
    files = contents(folder) if files is None else files
    for name in files:
        flush(folder / name)
    manifest = {
        "stage": stage,
        "config": config,
        "inputs": inputs,
        "counts": counts,
        "sha256": sha256_contents(files),
        "files": dict(files),
        "git_commit": git_commit(),
        "image": os.environ.get(IMAGE_VARIABLE) or None,
        "packages": package_versions(),
    }
    write_file(folder / FILE_NAME, json.dumps(manifest, indent=2, ensure_ascii=False, default=str) + "\n")
    return manifest


def read(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that a stage made."""
    path = folder / FILE_NAME
    try:
        loaded = json.loads(read_file(path))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {FILE_NAME}; give a folder that a stage of this pipeline made") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({one_line(error)}); run the stage that made the folder again"
        ) from None
    wanted = {"stage": str, "config": dict, "inputs": dict, "counts": dict, "sha256": str}
    if not isinstance(loaded, dict) or not all(isinstance(loaded.get(key), kind) for key, kind in wanted.items()):
        raise UserError(f"{path}: no stage wrote it; run the stage that made the folder again, or remove the file")
    return loaded


def files(folder: Path) -> dict[str, str] | None:
    """Hex SHA-256 of each file that a stage has left in its folder; None where none is known: it is a user's own."""
    if not (folder / FILE_NAME).is_file():
        return None
    made = read(folder)
    found: Any = made.get("files")
    if found is None:  # of an earlier version
        return None
    if not isinstance(found, dict) or sha256_contents(found) != made["sha256"]:
        where = folder / FILE_NAME
        raise UserError(f"{where}: its hashes do not belong together; run the stage that made the folder again")
    return found
