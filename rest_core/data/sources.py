"""Where data comes from: a configured source as local files, each with its format and its use.

A location is
    embedded:bfcl-executable   BFCL's retired executable questions in the installed bfcl-eval package
    published:NAME             a public file of ToolRL at a pinned commit (`rest_core.data.published`)
    owner/name                 a dataset of the Hugging Face hub, where no such path exists
    s3://bucket/…              an object, a prefix or a glob
    a path, a folder or a glob
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub

from rest_core import storage
from rest_core.config import EMBEDDED_DATA, DataSource
from rest_core.data import published, readers
from rest_core.data.fields import Rejected
from rest_core.data.files import SUFFIXES
from rest_core.data.hub import hub_errors, is_hub_id
from rest_core.data.prompts import Style
from rest_core.data.readers import Use
from rest_core.errors import UserError, nearest
from rest_core.records import Sample


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `path` is None for the embedded data, which lies in an installed package."""

    path: Path | None
    format: str
    use: tuple[Use, ...]

    @property
    def name(self) -> str:
        return EMBEDDED_DATA if self.path is None else str(self.path)

    def read(self, style: Style) -> Iterator[Sample | Rejected]:
        if self.path is None:
            return readers.read_embedded(style)
        return readers.read(self.path, self.format, style)


def resolve(source: DataSource, cache: Path | None = None) -> list[SourceFile]:
    """The files of a source, downloaded where they are remote.

    In a location that holds several formats each file is used for what its format was made for, as far as
    `source.use` allows it: in ToolRL's folder the SFT file for sft, the RL file for rl.

    Raises:
        UserError: nothing is there, it cannot be fetched, or its format is unknown.
    """
    if source.location.startswith("embedded:"):
        if source.location != EMBEDDED_DATA:
            raise UserError(
                f"{source.location}: no such embedded data{nearest(source.location, [EMBEDDED_DATA])} "
                f"(known: {EMBEDDED_DATA})"
            )
        return [SourceFile(None, "bfcl-executable", source.use)]
    paths = _local_files(source.location, cache or storage.cache_folder())
    formats = [readers.detect(path) if source.format == "auto" else source.format for path in paths]
    if len(set(formats)) == 1:
        return [SourceFile(path, format, source.use) for path, format in zip(paths, formats, strict=True)]
    files = []
    for path, format in zip(paths, formats, strict=True):
        made_for = readers.reader_of(format).use
        files.append(SourceFile(path, format, tuple(use for use in source.use if use in made_for)))
    return [file for file in files if file.use]


def _local_files(location: str, cache: Path) -> list[Path]:
    if location.startswith(published.PREFIX):
        return _data_files(published.fetch(location, cache=cache), location)
    if not storage.is_s3(location) and not Path(location).exists() and _looks_like_hub_id(location):
        return _data_files(_from_hub(location), location)
    found = []
    for place in storage.expand(location):
        # A folder or prefix may hold notes beside its data; a file that was named is read, or refused by name.
        if storage.is_s3(place) and place != location and not place.endswith(SUFFIXES):
            continue
        found += _data_files(storage.fetch(place, cache), place)
    if not found:
        raise UserError(f"{location}: no data file ({', '.join(SUFFIXES)}) there")
    return found


def _data_files(path: Path, location: str) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(inner for inner in path.rglob("*") if inner.is_file() and inner.suffix in SUFFIXES)
    if not found:
        raise UserError(f"{location}: no data file ({', '.join(SUFFIXES)}) in this folder")
    return found


def _looks_like_hub_id(location: str) -> bool:
    return is_hub_id(location) and not location.endswith(SUFFIXES)


def _from_hub(name: str) -> Path:
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    with hub_errors(name, "dataset"):
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
