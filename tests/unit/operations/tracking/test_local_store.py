"""MLflow's database on this machine: several processes, kills, other versions, damage."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.tracking import local_store, store, ui

OPEN = """
import sys
from rest_core.operations.tracking import store
client = store.open_client(sys.argv[1])
experiment = store.ensure_experiment(client, sys.argv[1], "test")
client.set_terminated(client.create_run(experiment).info.run_id)
"""


def uri(database: Path) -> str:
    return f"sqlite:///{database}"


def opening(database: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", OPEN, uri(database)], stderr=subprocess.PIPE)


def run_count(database: Path) -> int:
    client = store.open_client(uri(database))
    experiment = client.get_experiment_by_name("test")
    return 0 if experiment is None else len(client.search_runs([experiment.experiment_id]))


def test_processes_that_open_a_new_store_at_once_wait_for_one_another(tmp_path: Path) -> None:
    database = tmp_path / "mlruns" / "mlflow.db"
    processes = [opening(database) for _ in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error.decode()
    assert run_count(database) == 2


def test_a_process_that_is_killed_while_it_makes_a_store_leaves_none(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    process = opening(database)
    deadline = time.monotonic() + 300
    while not any(path.stat().st_size for path in tmp_path.glob(".partial-*.db")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not database.exists()
    assert run_count(database) == 0
    assert not list(tmp_path.glob(".partial-*"))


def test_a_full_disk_leaves_no_store_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.tracking import sqlalchemy_store

    def full(uri: str, **_: object) -> None:
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(sqlalchemy_store, "SqlAlchemyStore", full)
        with pytest.raises(UserError, match=r"mlflow\.db: MLflow's database cannot be made .*disk is full"):
            store.open_client(uri(tmp_path / "mlflow.db"))
    assert not list(tmp_path.glob("*mlflow.db"))
    (tmp_path / "mlflow.db").touch()  # what a full disk leaves of a file
    assert run_count(tmp_path / "mlflow.db") == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("UPDATE alembic_version SET version_num = 'f00dfeedbeef'", r"a newer MLflow than 3\.17.*schema f00dfeedbeef"),
        ("UPDATE alembic_version SET version_num = '0c779009ac13'", r"half made, or of an older .*mlflow db upgrade"),
        ("DELETE FROM alembic_version", r"half made, or of an older MLflow \(schema missing\).*mlflow db upgrade"),
        ("DROP TABLE alembic_version", r"half made, or of an older MLflow \(schema missing\).*mlflow db upgrade"),
        ("DROP TABLE runs", r"half made, or of an older MLflow \(schema missing\).*mlflow db upgrade"),
        (None, r"cannot be read \(file is not a database\); move it away"),
    ],
)
def test_a_store_that_cannot_be_used_is_told_in_a_line(
    tracking: TrackingConfig, damage: str | None, words: str
) -> None:
    database = store.sqlite_file(str(tracking.uri))
    assert database is not None
    if damage is None:
        database.write_bytes(b"no database " * 1000)
    else:
        with sqlite3.connect(database) as connection:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(damage)
        connection.close()
    before = database.read_bytes()
    for command in (lambda: store.connect(tracking), lambda: ui.serve(str(tracking.uri), port=1)):  # as `rest promote`
        with pytest.raises(UserError, match=words) as raised:
            command()
        assert "\n" not in str(raised.value) and str(database) in str(raised.value)
    assert database.read_bytes() == before


def test_a_folder_in_place_of_the_database(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        store.open_client(uri(tmp_path / "mlflow.db"))


def test_a_store_in_use_is_not_made_again(empty_database: Path, tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    shutil.copyfile(empty_database, database)
    inode = database.stat().st_ino
    local_store.prepare(database, uri(database))
    assert database.stat().st_ino == inode and not list(tmp_path.glob(".*"))
