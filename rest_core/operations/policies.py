"""Policies between stages: a folder of a model, or one that refers to a model elsewhere."""

from __future__ import annotations

import shutil
from pathlib import Path

from rest_core.operations import handoff


def write_reference(out: Path, source: str) -> None:
    """Make `out` a policy folder that refers to `source`, for a stage that passes its model on untouched."""
    handoff.write(out, handoff.Reference(source=source))


def pass_on(policy: str | Path, out: Path) -> None:
    """Make `out` the same policy as `policy`: a copy of a folder or of its reference, else a reference."""
    if Path(policy).is_dir():
        shutil.copytree(policy, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json", "metrics.json"))
    else:
        write_reference(out, str(policy))


def fetched(policy: str | Path) -> str | Path:
    """What a policy stands for: itself, or what its folder refers to, downloaded and checked where a stage made it.

    Raises:
        UserError: the reference cannot be read, or what it refers to is not what was written.
    """
    folder = Path(policy)
    reference = handoff.read(folder) if folder.is_dir() else None
    if reference is None:
        return policy
    return handoff.fetch(folder) if reference.files is not None else fetched(reference.source)
