from __future__ import annotations

from pathlib import Path

import pytest

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.tracking import store


def test_uri_is_the_configured_one_then_the_environments_then_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://env:5000")
    assert store.resolve_uri(TrackingConfig(uri="https://own")) == "https://own"
    assert store.resolve_uri(TrackingConfig()) == "http://env:5000"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert store.resolve_uri(TrackingConfig()) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert (tmp_path / "mlruns").is_dir()


def test_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown scheme 'htps'; did you mean 'https'"):
        store.resolve_uri(TrackingConfig(uri="htps://somewhere"))


def test_database_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        store.resolve_uri(TrackingConfig(uri=f"sqlite:///{tmp_path}/file/below/mlflow.db"))


def test_connect_says_quickly_that_a_server_is_away() -> None:
    with pytest.raises(UserError, match=r"MLflow at http://\*\*\*@127.0.0.1:9 does not answer"):
        store.connect(TrackingConfig(uri="http://me:pw@127.0.0.1:9"))


def test_where_to_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        store.where_to_look("http://u:p@h:5/", "1", "r")
        == "http://h:5/#/experiments/1/runs/r?workflowType=machine_learning"
    )
    monkeypatch.setattr(store, "rest_command", lambda: ".venv/bin/rest")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    here = f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert store.where_to_look(here, "1", "r").startswith(".venv/bin/rest ui, then http://127.0.0.1:5000/#/")
    assert store.where_to_look("sqlite:////x").startswith(".venv/bin/rest ui --set tracking.uri=sqlite:////x, then")
