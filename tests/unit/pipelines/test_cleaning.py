"""`rest clean`: what of earlier runs is removed, and what stays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipelines import cleaning
from pipelines.resume import held
from rest_core.errors import UserError

MEGABYTE = 10**6


def _run(parent: Path, name: str, *, status: str | None = "succeeded", version: int | None = None) -> Path:
    folder = parent / name
    (folder / "artifacts" / "p-2026" / "rest-rl").mkdir(parents=True)
    (folder / "artifacts" / "p-2026" / "rest-rl" / "model.safetensors").write_bytes(b"x" * MEGABYTE)
    (folder / "cache").mkdir()
    (folder / "run.json").write_text("{}", encoding="utf-8")
    (folder / "log.txt").write_text("log", encoding="utf-8")
    (folder / "model").symlink_to("artifacts/p-2026/rest-rl")
    if status is not None:
        registered = None if version is None else {"name": "m", "version": version}
        summary = {"status": status, "run": f"run {name}", "registered": registered}
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def registered(name: str, version: str, run: str) -> bool:
    return (name, version, run) == ("m", "3", "run kept")


def test_what_no_version_came_from_is_removed_and_its_report_stays(tmp_path: Path) -> None:
    _run(tmp_path, "kept", version=3)
    _run(tmp_path, "deleted-version", version=2)
    _run(tmp_path, "killed", status=None)
    running = _run(tmp_path, "running", status=None)
    (tmp_path / "somebody-elses").mkdir()
    (tmp_path / "latest").symlink_to("kept")
    with held(running, running / "artifacts"):
        found = {run.folder.name: run for run in cleaning.find([tmp_path], registered)}
    assert {name: (run.status, run.kept) for name, run in found.items()} == {
        "kept": ("succeeded", True),
        "deleted-version": ("succeeded", False),
        "killed": ("interrupted", False),
        "running": ("running", True),
    }
    assert all(run.bytes == MEGABYTE for run in found.values())
    cleaning.remove(found["killed"])
    assert [path.name for path in (tmp_path / "killed").iterdir()] == ["log.txt"]
    cleaning.remove(found["deleted-version"])
    left = {path.name for path in (tmp_path / "deleted-version").iterdir()}
    assert {"summary.json", "log.txt"} <= left and not {"artifacts", "cache", "run.json", "model"} & left
    [again] = cleaning.find([tmp_path / "deleted-version"], registered)
    assert again.kept and again.bytes == 0


def test_what_a_version_shares_frees_nothing(tmp_path: Path) -> None:
    folder = _run(tmp_path, "one")
    os.link(folder / "artifacts/p-2026/rest-rl/model.safetensors", tmp_path / "registered.safetensors")
    assert [run.bytes for run in cleaning.find([tmp_path], registered)] == [0]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run of"):
        list(cleaning.find([tmp_path], registered))
    folder = _run(tmp_path, "one")
    (folder / "summary.json").write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        list(cleaning.find([folder], registered))


def test_links_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "file").write_text("mine")
    runs = tmp_path / "runs"
    folder = _run(runs, "one")
    (folder / "artifacts" / "p-2026" / "elsewhere").symlink_to(outside)
    (folder / "cache").rmdir()
    (folder / "cache").symlink_to(outside)
    (runs / "linked").symlink_to(_run(tmp_path, "elsewhere"))
    [run] = cleaning.find([runs], registered)
    assert run.bytes < MEGABYTE + 200  # the links themselves
    cleaning.remove(run)
    assert not (folder / "cache").is_symlink() and not (folder / "artifacts").exists()
    assert (outside / "deep" / "file").read_text() == "mine"
    assert (tmp_path / "elsewhere" / "artifacts").is_dir()


def test_a_run_that_is_resumed_meanwhile_stays(tmp_path: Path) -> None:
    folder = _run(tmp_path, "killed", status=None)
    [run] = cleaning.find([folder], registered)
    with held(folder, folder / "artifacts"), pytest.raises(UserError, match="another process runs it"):
        cleaning.remove(run)
    assert (folder / "run.json").is_file() and (folder / "artifacts").is_dir()


@pytest.mark.parametrize("text", ["", '{"status": "succ', "[]", "[" * 10**5])
def test_a_damaged_summary_is_named(tmp_path: Path, text: str) -> None:
    folder = _run(tmp_path, "one")
    (folder / "summary.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        list(cleaning.find([folder], registered))


def test_a_pipe_in_place_of_a_summary_is_not_waited_for(tmp_path: Path) -> None:
    folder = _run(tmp_path, "one", status=None)
    os.mkfifo(folder / "summary.json")
    with pytest.raises(UserError, match=r"summary\.json: damaged"):
        list(cleaning.find([folder], registered))
