"""MLflow's database on this machine: made whole or not at all, by one process at a time, and looked at before its use.

MLflow makes an SQLite database by some fifty migrations in place. A process that is killed on the way, a full disk, or
a second process leave one that no later start can finish. So it is made aside, and gets its name when it is complete.
"""

from __future__ import annotations

import logging
import shlex
import sqlite3
from pathlib import Path
from urllib.parse import quote

from filelock import FileLock, Timeout

from rest_core.disk import disk_errors, written_aside
from rest_core.errors import UserError, one_line

logger = logging.getLogger(__name__)

_LOCK_SECONDS = 120.0  # making a database takes about 3
_TOLD_AFTER = 5.0


def prepare(database: Path, uri: str) -> None:
    """Make MLflow's database where there is none, and look whether one that is there can be used.

    Raises:
        UserError: it cannot be made, is damaged, or has another schema than this MLflow's.
    """
    database = database.resolve()
    if not _is_made(database):
        with disk_errors(database.parent):
            database.parent.mkdir(parents=True, exist_ok=True)
            with _alone(database):
                if not _is_made(database):  # another process was faster
                    _make(database)
    require_usable(database, uri)


def require_usable(database: Path, uri: str) -> None:
    """Raise `UserError` where a database is damaged, or has another schema than this MLflow's."""
    import mlflow

    aside = f"move it away ({database}), or name another store in tracking.uri"
    try:
        found = _schema(database)
    except sqlite3.Error as error:
        raise UserError(f"{database}: MLflow's database cannot be read ({one_line(error)}); {aside}") from None
    newest, known = _schemas()
    if found == newest:
        return
    if found is not None and found not in known:
        raise UserError(
            f"{database}: a newer MLflow than {mlflow.__version__} has made or migrated this database (schema "
            f"{one_line(found)[:40]}); use it with that MLflow, or name another store in tracking.uri"
        )
    raise UserError(
        f"{database}: MLflow's database is half made, or of an older MLflow (schema {found or 'missing'}); keep a "
        f"copy, then migrate it: mlflow db upgrade {shlex.quote(uri)}; where that fails, {aside}"
    )


def _alone(database: Path) -> FileLock:
    """The right to make a database; others wait."""
    lock = FileLock(database.with_name(f".{database.name}.lock"), thread_local=False)
    try:
        lock.acquire(timeout=_TOLD_AFTER)
    except Timeout:
        logger.warning("waiting for another process to make %s, at most %.0f s", database, _LOCK_SECONDS)
        try:
            lock.acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise UserError(f"{database}: another process has not made it within {_LOCK_SECONDS:.0f} s") from None
    return lock


def _is_made(database: Path) -> bool:
    """Whether there is something; an empty file, which a full disk leaves, is nothing."""
    return database.exists() and (not database.is_file() or database.stat().st_size > 0)


def _make(database: Path) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for left in database.parent.glob(f".partial-*-{database.name}*"):  # by a process that was killed
        left.unlink(missing_ok=True)
    try:
        with written_aside(database) as aside:
            # As MLflow makes it at its first use, with the experiment "Default".
            made = SqlAlchemyStore(f"sqlite:///{aside}", default_artifact_root=str(database.parent / "artifacts"))
            made.engine.dispose()
    except (MlflowException, sqlite3.Error) as error:
        raise UserError(f"{database}: MLflow's database cannot be made ({one_line(error)[:200]})") from error


def _schema(database: Path) -> str | None:
    """The revision of a database's schema; None where it has none. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True, timeout=20)
    try:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not {"alembic_version", "experiments", "runs"} <= tables:
            return None
        row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(row[0]) if row else None
    finally:
        connection.close()


def _schemas() -> tuple[str, set[str]]:
    """The newest revision that this MLflow knows, and all of them."""
    import mlflow
    from mlflow.store.db.utils import _get_latest_schema_revision

    folder = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    return _get_latest_schema_revision(), {file.name.partition("_")[0] for file in folder.glob("*_*.py")}
