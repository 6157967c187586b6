"""Files of a journal, as artifacts of MLflow runs; tables are listed where MLflow's pages look for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_core.operations.tracking.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

TABLES_TAG = "mlflow.loggedArtifacts"
"""Tag of `MlflowClient.log_table`: the files that MLflow's pages show as tables."""
MAX_TAG_VALUE = 8000  # MLflow's limit


def send(client: MlflowClient, run_id: str, record: Record, file: Path) -> None:
    """Store a file as a run's artifact, and list it where it is a table."""
    client.log_artifact(run_id, str(file), record["folder"] or None)
    if record["table"]:
        listed = client.get_run(run_id).data.tags.get(TABLES_TAG, "[]")
        entry = {"path": f"{record['folder']}/{file.name}", "type": "table"}
        if (value := with_table(listed, entry)) != listed:
            client.set_tag(run_id, TABLES_TAG, value)


def is_there(client: MlflowClient, run_id: str, record: Record) -> bool:
    """Whether the artifact of a record has been stored before."""
    name = Path(record["file"]).name
    path = f"{record['folder']}/{name}" if record["folder"] else name
    return any(one.path == path for one in client.list_artifacts(run_id, record["folder"] or None))


def with_table(listed: str, entry: dict[str, str]) -> str:
    """The tag's value with one more table.

    Of more tables than the value can hold the first and the newest ones are listed; the files are all stored. A value
    that is no list is replaced.
    """
    try:
        tables: Any = json.loads(listed)
    except ValueError:
        tables = []
    tables = tables if isinstance(tables, list) else []
    if entry in tables:
        return listed
    while len(value := json.dumps([*tables, entry])) > MAX_TAG_VALUE and tables:
        del tables[min(1, len(tables) - 1)]
    return value
