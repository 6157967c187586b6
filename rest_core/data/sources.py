"""Where data comes from: a configured source as local files, each with its format and its use.

A location is
    embedded:bfcl-retired      BFCL's retired questions in the installed bfcl-eval package
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
from rest_core.data.readers import Use
from rest_core.errors import UserError, nearest
from rest_core.records import Sample
from rest_core.styles.style import Style

# What the hub, `datasets`, LLaMA-Factory and others write beside the data.
_ABOUT_DATA = frozenset(
    {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json", "config.json"}
)
_HIDDEN = ("__MACOSX", "__pycache__")
_TRAINING = {"train", "training"}
_HELD_OUT = {"test", "testing", "eval", "evaluation", "validation", "valid", "val", "dev"}

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
    `source.use` allows it: in ToolRL's folder the SFT file for sft, the RL file for rl. Files that are left out are
    named in warnings.

    Raises:
        UserError: nothing is there, it cannot be fetched, or its format is unknown.
    """
    if source.location.startswith("embedded:"):
        if source.location != EMBEDDED_DATA:
            raise UserError(
                f"{source.location}: no such embedded data{nearest(source.location, [EMBEDDED_DATA])} "
                f"(known: {EMBEDDED_DATA})"
            )
        return [SourceFile(None, "bfcl-retired", source.use)]
    found = _local_files(source.location, cache or storage.cache_folder())
    kept = _without_other_splits(_formats(found, source), source.location)
    several = len({format for _, format in kept}) > 1
    files = []
    for file, format in kept:
        made_for = readers.reader_of(format).use if several else source.use
        use = tuple(use for use in source.use if use in made_for)
        files.append(SourceFile(file.path, format, use, mixed=source.format == readers.AUTO))
    return [file for file in files if file.use]


def _formats(found: Sequence[_Found], source: DataSource) -> list[tuple[_Found, str]]:
    """The files with their formats, without those that have none where others have."""
    if source.format != readers.AUTO:
        return [(file, source.format) for file in found]
    known: list[tuple[_Found, str]] = []
    unknown: list[readers.UnknownFormat] = []
    for file in found:
        try:
            known.append((file, readers.detect(file.path)))
        except readers.UnknownFormat as error:
            unknown.append(error)
    if not known:
        raise unknown[0]
    for why in unknown:
        log.warning("left out: %s", why)
    return known


def _without_other_splits(files: Sequence[tuple[_Found, str]], location: str) -> list[tuple[_Found, str]]:
    """The files without those of a test or validation split, which are for measuring and not for training.

    A split's file that is the only one of its format is kept: ToolRL's RL data is published so beside its SFT data.
    """
    trained_on = {format for file, format in files if not _is_held_out(file)}
    left_out = [str(file.inside) for file, format in files if _is_held_out(file) and format in trained_on]
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        log.warning(
            "%s: left out as test or validation data: %s; to train on a file, name it itself",
            location,
            f"{', '.join(left_out[:3])}{more}",
        )
    return [(file, format) for file, format in files if not _is_held_out(file) or format not in trained_on]


def _is_held_out(file: _Found) -> bool:
    """Whether a file's name is that of a test or validation split."""
    if file.inside is None:
        return False
    words = set(re.findall("[a-z]+", str(file.inside.with_suffix("")).lower()))
    return bool(words & _HELD_OUT) and not words & _TRAINING


def _local_files(location: str, cache: Path) -> list[_Found]:
    if location.startswith(published.PREFIX):
        return _data_files(published.fetch(location, cache=cache), location)
    is_s3 = storage.is_s3(location)
    if not is_s3 and not Path(location).exists() and is_hub_id(location) and not location.endswith(SUFFIXES):
        return _data_files(_from_hub(location), location)
    fixed = _fixed_part(location if is_s3 else str(Path(location).expanduser()))
    found: list[_Found] = []
    for place in storage.expand(location):
        inside = PurePosixPath(place.removeprefix(fixed))
        if place == location or (not is_s3 and Path(place).is_dir()):
            found += _data_files(storage.fetch(place, cache), place)
        elif _is_data(inside):
            found.append(_Found(storage.fetch(place, cache), inside))
    if not found:
        raise UserError(f"{location}: no data file ({', '.join(SUFFIXES)}) there")
    return found


def _data_files(path: Path, location: str) -> list[_Found]:
    """The file that a location names, or the files below it that may be data."""
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


def _from_hub(name: str) -> Path:
    patterns = [f"*{suffix}" for suffix in SUFFIXES]
    with hub_errors(name, "dataset"):
        return Path(huggingface_hub.snapshot_download(name, repo_type="dataset", allow_patterns=patterns))
