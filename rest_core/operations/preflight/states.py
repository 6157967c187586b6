"""What lies at the places that a run reads, in a few characters.

Of a cached stage these are inputs, and so part of the cache's key: what has changed in its place is read again.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

from rest_core import storage
from rest_core.config import Config
from rest_core.data import published
from rest_core.data.hub import Kind, hub_errors, is_hub_id
from rest_core.errors import UserError
from rest_core.operations.catalogue_entry import SOURCES
from rest_core.operations.preflight.surroundings import Surroundings


def find(config: Config, surroundings: Surroundings) -> dict[str, str]:
    """The state of each section's places.

    Of a place that cannot be looked at, such as a folder of a volume, which preflight does not mount, it is a new one
    each time: what reads it is then not taken from the cache.
    """

    def look(location: str, kind: Kind, revision: str | None) -> str:
        if surroundings.volume_of(location) is not None:
            return secrets.token_hex(8)
        try:
            return _state(location, kind, revision)
        except UserError:  # it is the stage that must read it, and that says why it cannot
            return secrets.token_hex(8)

    return _by_section(config, look)


def of_this_machine(config: Config) -> dict[str, str]:
    """The same for files, folders and S3 alone: a run that is resumed on this machine keeps what it has downloaded."""

    def look(location: str, kind: Kind, revision: str | None) -> str:
        try:
            here = storage.is_s3(location) or Path(storage.expand(location)[0]).expanduser().exists()
            return storage.state(location) if here else ""
        except UserError:
            return ""

    return _by_section(config, look)


def _by_section(config: Config, look: Callable[[str, Kind, str | None], str]) -> dict[str, str]:
    states: dict[str, list[str]] = {section: [] for section in SOURCES}
    for name, location in config.inputs():
        section = name.partition(".")[0]
        kind: Kind = "model" if section == "model" else "dataset"
        states[section].append(look(location, kind, config.model.revision if kind == "model" else None))
    if config.api_bank.location is None and config.api_bank.enabled:
        states["api_bank"].append(look(f"{published.PREFIX}api-bank", "dataset", None))
    return {section: hashlib.sha256("\n".join(found).encode()).hexdigest()[:16] for section, found in states.items()}


def _state(location: str, kind: Kind, revision: str | None) -> str:
    if location.startswith("embedded:"):
        return ""  # the image has it
    if location.startswith(published.PREFIX):
        published.require(location)  # where it cannot be had, stages are skipped: not for ever
        return published.COMMIT
    if not storage.is_s3(location) and not Path(location).exists() and is_hub_id(location):
        from huggingface_hub import HfApi

        with hub_errors(location, kind, revision):
            found = HfApi().repo_info(location, repo_type=kind, revision=revision, timeout=published.TIMEOUT_S)
            return str(found.sha)
    return storage.state(location)
