"""Passwords in addresses: refused where a cluster would keep them, handed on by the environment on one machine."""

from __future__ import annotations

import io
import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines import cli, local, local_ablation
from pipelines.resume import Trials
from pipelines.secrets import in_environment
from rest_core import logs
from rest_core.ablation.settings import AblationConfig, parse_schemes
from rest_core.config import Config, TrackingConfig, load
from rest_core.credentials import redacted
from rest_core.errors import UserError
from rest_core.operations.tracking import store

PASSWORDS = ("pa/ss", "p@ss@word", "hunter%2F2")
ENGINE = "rl.engine={{engine: vllm_server, url: 'http://u:{}@h:8000'}}"
SCHEME = "a={{scheme: uniform, rl: {{engine: {{engine: vllm_server, url: 'http://u:{}@h'}}}}}}"


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", store.HANDED_OVER):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # whatever the test sets is undone


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (["--set", "tracking.uri=http://me:{}@host:5000"], "tracking.uri"),
        (["--set", "tracking.uri=postgresql://mlflow:{}@db/m"], "tracking.uri"),
        (["--set", "tracking.uri=postgresql://db/m?user=x&password={}"], "tracking.uri"),
        (["--set", "tracking.uri=me:{}@host"], "tracking.uri"),
        (["--set", ENGINE], "rl.engine.vllm_server.url"),
        (["--set", "evaluation.engine={{engine: vllm_server, url: 'http://u:{}@h:8000'}}"], "evaluation.engine"),
        (["--set", "model.source=s3://key:{}@bucket/model"], "model.source"),
        (["--set", "data.sources=[{{location: 's3://key:{}@bucket/data'}}]"], "data.sources.0.location"),
        (["--set", "registry.destination=s3://key:{}@bucket/models"], "registry.destination"),
        (["--set", "storage.location=s3://key:{}@bucket/outputs"], "storage.location"),
        (["--set", "rl.mirror=s3://key:{}@bucket/mirror"], "rl.mirror"),
        (["--set", "api_bank.location=s3://key:{}@bucket/mirror"], "api_bank.location"),
        (["--data", "s3://key:{}@bucket/data"], "--data"),
        (["--api-bank", "s3://key:{}@bucket/data"], "--api-bank"),
        (["--set", "launch.train_job={{nodes: 2, runtime: r, environment: {{X: 'http://u:{}@h'}}}}"], "environment.X"),
        (["--pipeline", "ablation", "--scheme", "uniform", "--scheme", SCHEME], "schemes.a.rl.engine.url"),
    ],
)
@pytest.mark.parametrize("command", [["submit", "--dry-run"], ["compile", "-o", "pipeline.yaml"]])
def test_a_cluster_gets_no_address_with_a_password(
    command: list[str],
    arguments: list[str],
    field: str,
    password: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--profile", "tiny", *(argument.format(password) for argument in arguments)])
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert field in said.err and said.err.count("\n") == 1
    assert password not in said.err
    assert not list(tmp_path.iterdir())


def test_platform_yaml_is_looked_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    platform = tmp_path / "platform.yaml"
    platform.write_text("annotations: {example.org/registry: 'https://me:pa/ss@host'}", encoding="utf-8")
    with pytest.raises(SystemExit):
        cli.main(["submit", "--profile", "tiny", "--platform", str(platform), "--dry-run"])
    said = capsys.readouterr().err
    assert "platform.annotations.example.org/registry holds a password" in said and "pa/ss" not in said


def test_the_webhook_stays_with_promote(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["submit", "--profile", "tiny", "--set", "gate.webhook=https://hooks.example/x?token=abcdef", "--dry-run"])
    assert "hooks.example" not in capsys.readouterr().out


def test_stages_of_this_machine_get_the_password_by_their_environment() -> None:
    address = "http://me:pa/ss@127.0.0.1:5000"
    webhook = "gate.webhook=https://hooks.example/secret"
    config = in_environment(load("tiny", (f"tracking.uri={address}", webhook)))
    assert os.environ["MLFLOW_TRACKING_URI"] == address
    assert "pa/ss" not in config.model_dump_json() and "hooks.example" not in config.model_dump_json()
    assert store.resolve_uri(config.tracking) == address
    # The next command of the user has another environment.
    assert store.options_for(address) == ["--set", "tracking.uri=http://127.0.0.1:5000"]


def test_an_address_without_a_password_is_left(tmp_path: Path) -> None:
    config = in_environment(load("tiny", ("tracking.uri=http://127.0.0.1:5000",)))
    assert config.tracking.uri == "http://127.0.0.1:5000"
    assert "MLFLOW_TRACKING_URI" not in os.environ


@pytest.mark.parametrize("module", [local, local_ablation])
def test_a_local_run_builds_its_pipeline_without_the_password(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(config: Config, **_: Any) -> None:
        built.append(config.model_dump_json())
        raise UserError("far enough")

    monkeypatch.setattr(module, "build", build)
    config, console = load("tiny", ("tracking.uri=http://me:pa/ss@127.0.0.1:5000",)), Console(file=io.StringIO())
    with pytest.raises(UserError, match="far enough"):
        if module is local:
            local.run_local(config, folder=tmp_path / "run", console=console)
        else:
            trials = Trials(
                schemes=parse_schemes(["uniform", "paper"]),
                seeds=(0,),
                ablation=AblationConfig(baseline="uniform", metric="bfcl/call_accuracy"),
                parallelism=1,
            )
            local_ablation.run_ablation(config, trials, folder=tmp_path / "run", console=console)
    assert built and "pa/ss" not in built[0]


def test_no_error_carries_a_password() -> None:
    assert str(UserError("cannot reach postgresql://me:pa/ss@db/m")) == "cannot reach postgresql://***@db/m"


def test_no_line_of_a_log_carries_a_password() -> None:
    stream, address = io.StringIO(), f"http://me:{PASSWORDS[1]}@host"
    root = logging.getLogger()
    kept, level = root.handlers[:], root.level
    try:
        logs.configure(stream, libraries=())
        logging.getLogger("x").warning("waiting for %s", address)
        try:
            raise ValueError(address)
        except ValueError:
            logging.getLogger("x").exception("failed")
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = kept
        root.setLevel(level)
    assert stream.getvalue().count("http://***@host") == 2
    assert PASSWORDS[1] not in stream.getvalue()


@pytest.mark.parametrize("password", PASSWORDS)
def test_what_is_recorded_has_no_password(password: str) -> None:
    recorded = TrackingConfig(uri=f"http://me:{password}@host").model_dump()
    assert password not in json.dumps(redacted(recorded))


def test_an_address_that_cannot_be_read_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"'http://\*\*\*@host' is not an address; .*%5B"):
        store.resolve_uri(TrackingConfig(uri="http://me:p[ss@host"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "me:hunter2@host")
    with pytest.raises(UserError, match=r"^tracking.uri: unknown scheme ''") as caught:
        store.resolve_uri(TrackingConfig())
    assert "hunter2" not in str(caught.value)
