"""Where data comes from: a configured source as local files, each with its format and its use.

A location is
    embedded:bfcl-executable   BFCL's retired executable questions in the installed bfcl-eval package
    published:NAME             a public file of ToolRL at a pinned commit (`rest_core.data.published`)
    owner/name                 a dataset of the Hugging Face hub, where no such path exists
    s3://bucket/…              an object, a prefix or a glob
    a path, a folder or a glob

Of a folder, a prefix, a glob or a hub dataset not every file is training data: hidden files and folders, the files in
which tools keep what they know about a dataset, files of no known format, and files that are named as a test or
validation split beside others of their format are left out, and named in a warning where that may surprise. A file that
is given by its own name is read, whatever it is called.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

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

# What the hub, `datasets`, LLaMA-Factory and others write beside the data.
_ABOUT_DATA = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json", "config.json"}
)
_HIDDEN = ("__MACOSX", "__pycache__")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
_WORD = re.compile(r"[a-z]+")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceFile:
    """A file of a source; `path` is None for the embedded data, which lies in an installed package.

    `format` is the file's, of its first record that has one; with `mixed` each record is read as what it looks like.
    """

    path: Path | None
    format: str
    use: tuple[Use, ...]
    mixed: bool = False

    @property
    def name(self) -> str:
        return EMBEDDED_DATA if self.path is None else str(self.path)

    def read(self, style: Style) -> Iterator[Sample | Rejected]:
        if self.path is None:
            return readers.read_embedded(style)
        return readers.read(self.path, readers.AUTO if self.mixed else self.format, style)


@dataclass(frozen=True)
class _Found:
    """A file at a location; `inside` is its path below it, None where the location names the file itself."""

    path: Path
    inside: PurePosixPath | None = None


def resolve(source: DataSource, cache: Path | None = None) -> list[SourceFile]:
    """The files of a source, downloaded where they are remote.

    In a location that holds several formats each file is used for what its format was made for, as far as
    `source.use` allows it: in ToolRL's folder the SFT file for sft, the RL file for rl. What is left out is said in
    warnings.

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
    found = _local_files(source.location, cache or storage.cache_folder())
    known = [(file, format) for file, format in _formats(found, source) if format is not None]
    kept = _without_other_splits(known, source.location)
    several = len({format for _, format in kept}) > 1
    files = []
    for file, format in kept:
        made_for = readers.reader_of(format).use if several else source.use
        use = tuple(use for use in source.use if use in made_for)
        files.append(SourceFile(file.path, format, use, mixed=source.format == readers.AUTO))
    return [file for file in files if file.use]


def _formats(found: Sequence[_Found], source: DataSource) -> list[tuple[_Found, str | None]]:
    """Each file's format; None for a file that has none, where others have."""
    if source.format != readers.AUTO:
        return [(file, source.format) for file in found]
    formats: list[tuple[_Found, str | None]] = []
    unknown: list[readers.UnknownFormat] = []
    for file in found:
        try:
            formats.append((file, readers.detect(file.path)))
        except readers.UnknownFormat as error:
            unknown.append(error)
            formats.append((file, None))
    if len(unknown) == len(found):
        raise unknown[0]
    for why in unknown:
        log.warning("left out: %s", why)
    return formats


def _without_other_splits(files: Sequence[tuple[_Found, str]], location: str) -> list[tuple[_Found, str]]:
    """The files without those of a test or validation split, which are for measuring and not for training.

    A split's file that is the only one of its format is kept: ToolRL's RL data is published so beside its SFT data.
    """
    trained_on = {format for file, format in files if _split(file) is None}
    kept: list[tuple[_Found, str]] = []
    left_out: list[str] = []
    for file, format in files:
        if _split(file) is None or format not in trained_on:
            kept.append((file, format))
        else:
            left_out.append(str(file.inside))
    if left_out:
        log.warning(
            "%s: left out as test or validation data: %s; to train on a file, name it itself",
            location,
            _some(left_out),
        )
    return kept


def _split(file: _Found) -> str | None:
    """The split that a file's name says it is of, "test" or "validation"; None for training data and others."""
    if file.inside is None:
        return None
    said = {_SPLITS[word] for word in _WORD.findall(str(file.inside.with_suffix("")).lower()) if word in _SPLITS}
    return None if "train" in said or not said else said.pop()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _local_files(location: str, cache: Path) -> list[_Found]:
    if location.startswith(published.PREFIX):
        return _data_files(published.fetch(location, cache=cache), location)
    if not storage.is_s3(location) and not Path(location).exists() and _looks_like_hub_id(location):
        return _data_files(_from_hub(location), location)
    found: list[_Found] = []
    for place in storage.expand(location):
        if storage.is_s3(place) and place != location:
            inside = PurePosixPath(place.removeprefix(_fixed_part(location)))
            # A prefix may hold notes beside its data; a file that was named is read, or refused by name.
            if _is_data(inside):
                found.append(_Found(storage.fetch(place, cache), inside))
            continue
        path = storage.fetch(place, cache)
        if place == location or path.is_dir():
            found += _data_files(path, place)
        elif _is_data(inside := PurePosixPath(path.relative_to(Path(_fixed_part(location)).expanduser()))):
            found.append(_Found(path, inside))
    if not found:
        raise UserError(f"{location}: no data file ({', '.join(SUFFIXES)}) there")
    return found


def _data_files(path: Path, location: str) -> list[_Found]:
    if path.is_file():
        return [_Found(path)]
    inner = ((inner, PurePosixPath(inner.relative_to(path))) for inner in sorted(path.rglob("*")) if inner.is_file())
    found = [_Found(file, inside) for file, inside in inner if _is_data(inside)]
    if not found:
        raise UserError(f"{location}: no data file ({', '.join(SUFFIXES)}) in this folder")
    return found


def _is_data(inside: PurePosixPath) -> bool:
    """Whether a file below a location may be data, by its name."""
    return (
        inside.suffix in SUFFIXES
        and inside.name not in _ABOUT_DATA
        and not any(part.startswith(".") or part in _HIDDEN for part in inside.parts)
    )


def _fixed_part(location: str) -> str:
    """A prefix's location with its slash, or what stands before a glob's first wildcard as far as it is folders."""
    literal = re.split(r"[*?\[]", location, maxsplit=1)[0]
    return f"{location.rstrip('/')}/" if literal == location else literal[: literal.rfind("/") + 1]


def _looks_like_hub_id(location: str) -> bool:
    return is_hub_id(location) and not location.endswith(SUFFIXES)


def _from_hub(name: str) -> Path:
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    with hub_errors(name, "dataset"):
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
