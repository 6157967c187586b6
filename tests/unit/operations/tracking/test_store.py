from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_credentials_travel_by_environment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:pw@host:5000")
    assert store.without_credentials("http://me:pw@host:5000") == "http://host:5000"
    assert store.with_credentials("http://host:5000") == "http://me:pw@host:5000"
    assert store.with_credentials("http://other:5000") == "http://other:5000"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cannot open s3://a:b@c/d", "cannot open s3://***@c/d"),
        ("https://b.s3/x?X-Amz-Signature=abc&y=1", "https://b.s3/x?X-Amz-Signature=***&y=1"),
        ("https://host/path?rows=5", "https://host/path?rows=5"),
        ("mail me@host", "mail me@host"),
    ],
)
def test_redact(text: str, clean: str) -> None:
    assert store.redact(text) == clean


@given(st.text(min_size=1), st.text(min_size=8))
def test_no_password_of_a_url_survives(user: str, password: str) -> None:
    userinfo = f"{quote(user, safe='')}:{quote(password, safe='')}"
    assert userinfo not in store.redact(f"connect to http://{userinfo}@host/path failed")


def test_redacted_hides_values_of_secret_keys_at_any_depth() -> None:
    values = {"a": [{"hf_token": "abc", "max_response_tokens": 7}], "aws_secret_access_key": "x", "url": "http://u:p@h"}
    assert store.redacted(values) == {
        "a": [{"hf_token": "***", "max_response_tokens": 7}],
        "aws_secret_access_key": "***",
        "url": "http://***@h",
    }


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
