"""BFCL's question files inside the installed `bfcl-eval` package, found without importing it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rest_core.data.files import sound_records
from rest_core.errors import UserError

PREFIX = "BFCL_v4_"
REQUIREMENT = "bfcl-eval==2026.3.23"  # as in requirements/no-deps.txt
_ID_LIST = "format_sensitivity"  # names questions of other categories and has none of its own


def data_folder() -> Path:
    """The folder `bfcl_eval/data`; a `UserError` where the package is not installed."""
    spec = importlib.util.find_spec("bfcl_eval")
    for place in (spec.submodule_search_locations or ()) if spec else ():
        if (folder := Path(place) / "data").is_dir():
            return folder
    raise UserError(f"the package bfcl-eval is not installed; install it with: pip install --no-deps {REQUIREMENT}")


def categories() -> list[str]:
    """Names of the question files at the top of `data`, scored and others, sorted."""
    names = {path.stem.removeprefix(PREFIX) for path in data_folder().glob(f"{PREFIX}*.json")}
    return sorted(names - {_ID_LIST})


def memory_prerequisites() -> Iterator[dict[str, Any]]:
    """The conversations that memory categories begin with, which are the same for all of them."""
    for path in sorted((data_folder() / "memory_prereq_conversation").glob("*.json")):
        for record in sound_records(path, "install bfcl-eval again"):
            yield record.fields


def questions(category: str, folder: str = ".") -> Iterator[dict[str, Any]]:
    """The entries of a category's file below `data/folder`, e.g. ("exec_simple", "unused_datasets/question")."""
    return entries(f"{folder}/{PREFIX}{category}.json")


def entries(file: str) -> Iterator[dict[str, Any]]:
    """The entries of a file of JSON lines below `data`."""
    for record in sound_records(data_folder() / file, "install bfcl-eval again"):
        yield record.fields
