"""Edits depend on their number alone; what a reader makes of one is a fault or not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import random_edits
from edits import changes
from edits.kinds import KINDS

from rest_core.errors import UserError


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    random_edits.prepared(tmp_path, ["data", "profile", "platform"])
    return tmp_path


@pytest.mark.parametrize("kind", ["data", "profile", "platform"])
def test_the_originals_are_read(root: Path, kind: str) -> None:
    for number, path in enumerate(sorted((root / "originals" / kind).iterdir())):
        alone = root / "alone" / str(number)
        alone.mkdir(parents=True)
        (alone / path.name).write_bytes(path.read_bytes())
        if path.name == "binary.parquet":  # its answers are bytes
            continue
        KINDS[kind].read(alone, 4 * number)


def test_edits_depend_on_the_seed_and_their_number(root: Path) -> None:
    def made(seed: int, number: int) -> list[tuple[str, bytes]]:
        random_edits.attempt(number, "data", seed, root / "originals", root / "work")
        return [(path.name, path.read_bytes()) for path in (root / "work").iterdir() if path.is_file()]

    assert made(0, 7) == made(0, 7) and made(0, 7) != made(1, 7) and made(0, 7) != made(0, 8)


def test_a_structure_whose_parts_are_shared_many_times_is_changed_at_once() -> None:
    shared: list[object] = ["x"]
    for _ in range(60):
        shared = [shared, shared]
    assert isinstance(changes.in_structure(Random(0), shared), list)


def test_changed_texts_and_structures_are_of_their_kind() -> None:
    rng = Random(0)
    for _ in range(200):
        assert isinstance(changes.edited(rng, b'{"a": [1, {"b": "c"}]}\n{"a": 2}\n', changes.of_json_lines), bytes)
        assert isinstance(changes.edited(rng, b"a: {b: [1, 2]}\n", changes.of_yaml), bytes)


def refuses(folder: Path, number: int) -> None:
    raise UserError("not this")


def fails(folder: Path, number: int) -> None:
    raise ValueError("a defect")


def exits(folder: Path, number: int) -> None:
    raise SystemExit


@pytest.mark.parametrize(("read", "fault"), [(refuses, None), (fails, "ValueError: a defect"), (exits, "SystemExit")])
def test_a_fault_is_anything_but_a_refusal(
    root: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path, int], None], fault: str | None
) -> None:
    monkeypatch.setitem(KINDS, "data", dataclasses.replace(KINDS["data"], read=read))
    found = random_edits.attempt(1, "data", 0, root / "originals", root / "work")
    assert found is None if fault is None else (found is not None and fault in found)


def test_a_change_outside_is_seen(root: Path) -> None:
    before = random_edits.snapshot(root / "guarded")
    (root / "guarded" / "key").chmod(0o660)
    assert random_edits.snapshot(root / "guarded") != before


def test_a_few_edits_show_no_fault(root: Path) -> None:
    for number in range(30):
        assert random_edits.attempt(number, "data", 0, root / "originals", root / "work") is None
