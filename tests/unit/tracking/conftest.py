"""A store of this test alone: SQLite, migrated once a session, copied for every test."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from rest_core.config import TrackingConfig
from rest_core.tracking import store


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    store.open_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def tracking(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackingConfig:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    database = tmp_path / "mlruns" / "mlflow.db"
    database.parent.mkdir()
    shutil.copyfile(empty_database, database)
    return TrackingConfig(uri=f"sqlite:///{database}", experiment="test")


@pytest.fixture
def client(tracking: TrackingConfig) -> MlflowClient:
    return store.open_client(store.resolve_uri(tracking))
