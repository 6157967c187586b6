"""The end of a run, told to a webhook: what it gets, when, and that the run does not hang on it."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from rest_core.config import LaunchConfig, StorageConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.status.announce import announce
from rest_core.operations.status.exit_task import conclude
from rest_core.operations.status.final import FinalStatus, Links
from rest_core.operations.status.outcome import FailedStage, Outcome

LINKS = (("KFP", "https://kfp.example/#/runs/details/1"), ("MLflow", "https://mlflow.example/#/runs/2"))
FAILED = Outcome(
    verdict="failed",
    pipeline_run="weekly",
    failures=(FailedStage("rest-rl", "out of <!channel> memory & more\nsecond line", ("log line",)),),
    message="KFP's own",
    stages=(),
    links=LINKS,
)
SUCCEEDED = Outcome(verdict="succeeded", pipeline_run="weekly", failures=(), message="x", stages=(), links=LINKS)


@dataclass
class Hook:
    url: str = ""
    status: int = 200
    bodies: list[Any] = field(default_factory=list)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    """A server whose address the environment has, with the newline of a Secret that was made from a file."""
    made = Hook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            made.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(made.status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    made.url = f"http://127.0.0.1:{server.server_port}/T0KEN"
    monkeypatch.setenv("REST_WEBHOOK_URL", f"{made.url}\n")
    yield made
    server.shutdown()
    server.server_close()


def test_slack_gets_one_text(hook: Hook) -> None:
    announce(FAILED)
    (body,) = hook.bodies
    assert body.keys() == {"text"}
    assert body["text"].splitlines() == [
        "❌ failed: weekly",
        "rest-rl: out of &lt;!channel&gt; memory &amp; more second line",
        "KFP: https://kfp.example/#/runs/details/1",
        "MLflow: https://mlflow.example/#/runs/2",
    ]


def test_programs_get_fields(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REST_WEBHOOK_FORM", "json")
    announce(FAILED)
    assert hook.bodies == [
        {
            "run": "weekly",
            "status": "failed",
            "failures": [{"stage": "rest-rl", "reason": "out of <!channel> memory & more second line"}],
            "message": "KFP's own",
            "links": dict(LINKS),
        }
    ]


def test_a_success_is_told_unless_only_failures_are_asked_for(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    announce(SUCCEEDED)
    assert hook.bodies[0]["text"].startswith("✅ succeeded: weekly\nKFP: ")
    monkeypatch.setenv("REST_WEBHOOK_WHEN", "failed")
    announce(SUCCEEDED)
    assert len(hook.bodies) == 1
    announce(FAILED)
    assert len(hook.bodies) == 2


def test_nobody_is_told_where_there_is_no_webhook(hook: Hook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REST_WEBHOOK_URL")
    announce(FAILED)
    assert hook.bodies == []


@pytest.mark.parametrize("name", ["REST_WEBHOOK_FORM", "REST_WEBHOOK_WHEN"])
def test_settings_that_are_none_are_named(hook: Hook, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "teams")
    with pytest.raises(UserError, match=f"{name}=teams: must be "):
        announce(FAILED)


def test_a_webhook_that_fails_changes_nothing_but_the_report(
    hook: Hook, tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 500
    caplog.set_level(logging.DEBUG, logger="rest_core")
    outcome = conclude(
        tracking,
        Links(),
        FinalStatus(state="SUCCEEDED"),
        storage=StorageConfig(),
        launch=LaunchConfig(),
        pipeline_run="weekly",
        page=tmp_path / "report.md",
    )
    assert len(hook.bodies) == 1
    assert outcome.succeeded
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "The webhook was not told: 127.0.0.1 was not told (HTTP 500)" in report
    assert "The webhook was not told" in caplog.text
    assert "T0KEN" not in report + caplog.text
