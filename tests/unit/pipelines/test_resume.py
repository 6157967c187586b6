"""Resuming a local run: what is kept, what is taken up, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from components.runtime import ROOT_VARIABLE, UNFINISHED, take_up
from pipelines.monitor import Monitor
from pipelines.resume import RECORD_FILE, SUMMARY_FILE, RunRecord, held, set_unfinished_aside, told_how_to_resume
from rest_core import config
from rest_core.errors import UserError


def test_the_record_gives_the_configuration_back_with_overrides(tmp_path: Path) -> None:
    whole = config.load("tiny", ("rl.steps=7", "rl.loss.dual_clip=null"))
    RunRecord(run="tiny · 3f2a", runner="docker", config=whole.model_dump(mode="json")).write(tmp_path)
    record = RunRecord.read(tmp_path, "run")
    assert (record.run, record.runner) == ("tiny · 3f2a", "docker")
    assert record.configuration(tmp_path, ()) == whole
    assert record.configuration(tmp_path, ("rl.micro_batch_tokens=64",)).rl.micro_batch_tokens == 64
    assert record.configuration(tmp_path, ()) == whole
    with pytest.raises(UserError, match=r"run\.json: unknown key 'rl\.stepz'"):
        record.configuration(tmp_path, ("rl.stepz=1",))


def test_what_is_no_run_or_has_succeeded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run of `rest run` there"):
        RunRecord.read(tmp_path, "run")
    (tmp_path / RECORD_FILE).write_text('{"run": 1}', encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        RunRecord.read(tmp_path, "run")
    RunRecord(run="r", runner="subprocess", config={}).write(tmp_path)
    (tmp_path / SUMMARY_FILE).write_text('{"status": "failed"}', encoding="utf-8")
    RunRecord.read(tmp_path, "run")
    (tmp_path / SUMMARY_FILE).write_text('{"status": "succeeded"}', encoding="utf-8")
    with pytest.raises(UserError, match="has succeeded"):
        RunRecord.read(tmp_path, "run")
    with pytest.raises(UserError, match="`rest run` has started it"):
        RunRecord.read(tmp_path, "ablate")
    (tmp_path / SUMMARY_FILE).write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match="damaged"):
        RunRecord.read(tmp_path, "run")


def _task(root: Path, name: str, *, done: bool) -> Path:
    task = root / name
    (task / "trained").mkdir(parents=True)
    (task / "trained" / "checkpoint").write_text(name, encoding="utf-8")
    for beside in ("trained.tracking", "trained.training"):
        (task / beside).mkdir()
    if done:
        (task / "metrics").write_text(json.dumps({"stage/seconds": 4.5, "stage/peak_rss_mib": 80.0}), encoding="utf-8")
        (task / "executor_output.json").touch()
    return task


@pytest.mark.parametrize("loop", ["", "for-loop-1-iteration-0/"])
def test_an_unfinished_task_is_taken_up_by_its_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loop: str
) -> None:
    _task(tmp_path / f"p-2026-01/{loop}", "one", done=True)
    _task(tmp_path / f"p-2026-01/{loop}", "two", done=False)
    assert set_unfinished_aside(tmp_path) == ["one"]
    assert set_unfinished_aside(tmp_path) == ["one"]  # nothing had begun in between
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    for name, expected in (("one", None), ("two", "two")):
        new = tmp_path / f"p-2026-02/{loop}" / name
        new.mkdir(parents=True)
        take_up(new / "trained")
        found = new / "trained" / "checkpoint"
        assert (found.read_text(encoding="utf-8") if found.exists() else None) == expected
        for beside in ("trained.tracking", "trained.training"):
            assert (new / beside).is_dir() == (expected is not None)
    # It is interrupted again.
    assert set_unfinished_aside(tmp_path) == ["one"]
    assert (tmp_path / UNFINISHED / loop / "two/trained/checkpoint").is_file()


@pytest.mark.parametrize("spoil", [lambda path: os.mkfifo(path), lambda path: path.mkdir(), lambda path: path.touch()])
@pytest.mark.parametrize("name", [RECORD_FILE, SUMMARY_FILE])
def test_a_record_or_summary_that_is_no_file_or_empty_is_one_line(
    tmp_path: Path, name: str, spoil: Callable[[Path], object]
) -> None:
    RunRecord(run="r", runner="subprocess", config={}).write(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    spoil(tmp_path / name)
    with pytest.raises(UserError, match=r"run\.json: cannot be read \(.*\); start a new run"):
        RunRecord.read(tmp_path, "run")


def test_links_among_the_tasks_are_not_followed(tmp_path: Path) -> None:
    root, outside = tmp_path / "artifacts", tmp_path / "outside"
    _task(outside, "two", done=False)
    _task(root / "p-2026-01", "one", done=False)
    (root / "p-2026-02").symlink_to(outside)
    (root / "p-2026-01" / "two").symlink_to(outside / "two")
    assert set_unfinished_aside(root) == []
    assert (root / UNFINISHED / "one").is_dir() and (outside / "two" / "trained" / "checkpoint").is_file()
    _task(root / "p-2026-01", "one", done=False)
    (root / UNFINISHED).rename(tmp_path / "away")
    (root / UNFINISHED).symlink_to(tmp_path / "away")
    with pytest.raises(UserError, match="is a link, and files are deleted there"):
        set_unfinished_aside(root)
    assert (tmp_path / "away" / "one").is_dir()


def test_nothing_is_taken_up_outside_a_local_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    take_up(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_monitor_knows_what_was_done_before_and_follows_the_newest_attempt(tmp_path: Path) -> None:
    _task(tmp_path / "p-2026-01", "one", done=True)
    said: list[str] = []
    with Monitor(tmp_path, on_start=lambda stage, number: said.append(f"{number} {stage.name}")) as monitor:
        assert (monitor.stages["one"].seconds, monitor.stages["one"].peak_rss_mib) == (4.5, 80.0)
        _task(tmp_path / "p-2026-02", "two", done=False)
        _task(tmp_path / "p-2026-02", "one", done=False)  # its settings have changed
        deadline = time.monotonic() + 60
        while len(said) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    assert sorted(said) == ["1 one", "2 two"]
    assert monitor.stages["one"].folder.parent.name == "p-2026-02" and not monitor.stages["one"].done


def test_one_process_at_a_time_and_no_stage_beside_it(tmp_path: Path) -> None:
    with (
        held(tmp_path, tmp_path / "artifacts"),
        pytest.raises(UserError, match="another process runs it"),
        held(tmp_path, tmp_path / "artifacts"),
    ):
        pass
    stage = subprocess.Popen(
        [sys.executable, "-c", "import time; print(flush=True); time.sleep(600)"],
        env={**os.environ, ROOT_VARIABLE: str(tmp_path / "artifacts")},
        stdout=subprocess.PIPE,
    )
    try:
        assert stage.stdout is not None
        stage.stdout.readline()
        with (
            pytest.raises(UserError, match=f"process {stage.pid} still runs a stage"),
            held(tmp_path, tmp_path / "artifacts"),
        ):
            pass
    finally:
        stage.kill()
        psutil.Process(stage.pid).wait()
    with held(tmp_path, tmp_path / "artifacts"):
        pass


@pytest.mark.parametrize("error", [UserError("wrong"), KeyboardInterrupt(), SystemExit(143)])
def test_whatever_ends_a_run_says_how_to_resume_it(
    tmp_path: Path, error: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(type(error)), told_how_to_resume(tmp_path, "run"):
        raise error
    assert not hasattr(error, "__notes__")  # it had not begun
    RunRecord(run="r", runner="subprocess", config={}).write(tmp_path)
    with pytest.raises(type(error)), told_how_to_resume(tmp_path, "run"):
        raise error
    [note] = error.__notes__
    assert note.endswith(f"rest run --resume {tmp_path}")
    assert ("--resume" in capsys.readouterr().err) == isinstance(error, SystemExit)
