"""Files written whole or not at all, by one process, on disks that are full or fail."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rest_core import disk
from rest_core.disk import disk_problem, held
from rest_core.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from rest_core.disk import held
with held(Path(sys.argv[1]), "held"):
    print("holds", flush=True)
    time.sleep(600)
"""


def holder(lock: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_lock_is_refused_at_once_and_ends_with_its_process(tmp_path: Path, number: signal.Signals) -> None:
    lock = tmp_path / ".out.lock"
    process = holder(lock)
    try:
        started = time.monotonic()
        told = pytest.raises(UserError, match=r"^out: another process writes it$")
        with told, held(lock, "out: another process writes it"):
            pass
        assert time.monotonic() - started < 20
    finally:
        process.send_signal(number)
        process.wait(timeout=60)
    with held(lock, "nothing stale"):
        pass
    assert not lock.exists()


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    told = pytest.raises(UserError, match=rf"^{tmp_path}/lock: something else has this name")
    with told, held(tmp_path / "lock", "held"):
        pass
    assert (tmp_path / "mine").read_text() == "mine"


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert disk.read_file(tmp_path / "file") == b"text"
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match="no file"):
            disk.read_file(path)
    with pytest.raises(FileNotFoundError):
        disk.read_file(tmp_path / "none")
    plain = {path.name for path in tmp_path.iterdir() if disk.is_plain_file(path)}
    assert plain == {"file"} and not disk.is_plain_file(tmp_path / "none")


def test_what_is_removed_is_the_link_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    for name in ("link", "none"):
        disk.remove(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    disk.remove(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENOTDIR, errno.EIO, errno.EFBIG])
def test_what_goes_wrong_with_a_disk_is_one_line_that_names_the_place(number: int) -> None:
    rename = OSError(number, os.strerror(number), "/a/.partial-x", None, "/a/x")
    for error, place in ((OSError(number, "x"), "/folder"), (OSError(number, "x", "/file"), "/file"), (rename, "/a/x")):
        told = disk_problem(error, "/folder")
        assert told is not None and told.startswith(f"{place}: ") and "\n" not in told
    assert disk_problem(OSError(errno.EINTR, "x"), "/folder") is None


def test_a_file_that_becomes_too_large_leaves_the_one_that_was_there(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("before")
    program = """
import resource, sys
from pathlib import Path
from rest_core.disk import write_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_file(Path(sys.argv[1]), "x" * 100_000)
"""
    arguments = [sys.executable, "-c", program, str(tmp_path / "summary.json")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert "UserError: " in done.stderr and "summary.json: file too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "before"
