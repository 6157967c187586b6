"""Policies between stages: a folder that holds a model, or points to one elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from rest_core.operations import handoff


def point_to(out: Path, source: str) -> None:
    """Make `out` a policy folder that points to `source`, for a stage that passes its model on untouched."""
    handoff.write(out, handoff.Pointer(source=source))


def pass_on(policy: str | Path, out: Path) -> None:
    """Make `out` the same policy as `policy`: a copy of a folder, which may hold a pointer only, else a pointer."""
    if Path(policy).is_dir():
        shutil.copytree(policy, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json", "metrics.json"))
    else:
        point_to(out, str(policy))


def fetched(policy: str | Path) -> str | Path:
    """Where a policy is: itself, or what its folder points to, downloaded; checked where a stage made it.

    Raises:
        UserError: the pointer cannot be read, or the policy is not what was written.
    """
    folder = Path(policy)
    if not folder.is_dir():
        return policy
    pointer = handoff.read(folder)
    if pointer is not None and pointer.files is None:
        return fetched(pointer.source)
    place = handoff.fetch(folder)
    return policy if place == folder else place
