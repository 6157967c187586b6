"""Commands against a local server that checks their requests against KFP's contract."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kfp
import pytest
from contract import Contract, generated, official
from fake_kfp import FakeKfp
from kubernetes.config import kube_config
from public_data import missing, public

from pipelines import cli
from pipelines.cluster import client, follow, request, submit

OFFICIAL = "kfp/kfp_api_single_file.swagger.json"


@pytest.fixture(scope="session")
def official_contract() -> Contract:
    if (path := public(OFFICIAL)) is None:
        pytest.skip(missing(OFFICIAL))
    return official(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def contract() -> Contract:
    """The official file if it is available, else the generated models."""
    if (path := public(OFFICIAL)) is None:
        return generated()
    return official(json.loads(path.read_text(encoding="utf-8")))


@pytest.fixture
def kfp_server(contract: Contract) -> Iterator[FakeKfp]:
    server = FakeKfp(contract)
    yield server
    server.close()
    assert server.problems == []


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster, token or context of whoever runs the tests; no long pauses."""
    for name in (
        "KF_PIPELINES_ENDPOINT",
        "KF_PIPELINES_UI_ENDPOINT",
        "KF_PIPELINES_TOKEN",
        "KF_PIPELINES_SA_TOKEN_PATH",
        "KUBERNETES_SERVICE_HOST",
        "KUBERNETES_SERVICE_PORT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "kfp/context.json"))
    monkeypatch.setattr(client.RETRIES, "backoff_factor", 0.001)
    monkeypatch.setattr(submit, "LOOKUP_PAUSES", (0.0, 0.01))
    monkeypatch.setattr(follow, "POLL_SECONDS", 0.001)


_BUILT: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def _each_pipeline_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests send the same one, and compiling it takes longer than all the rest."""
    build = request.build

    def once_each(*arguments: Any, **settings: Any) -> Any:
        key = repr((arguments, settings))
        if key not in _BUILT:
            _BUILT[key] = build(*arguments, **settings)
        return _BUILT[key]

    monkeypatch.setattr(request, "build", once_each)


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error that a user can correct."""
        assert self.code == 2, self
        assert self.err.startswith("error: ") and self.err.count("\n") == 1, self.err
        return self.err.removeprefix("error: ").rstrip()


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """rest("submit", …): the command in this process."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["rest", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def at_server(rest: Callable[..., Outcome], kfp_server: FakeKfp) -> Callable[..., Outcome]:
    """The same, with --host."""
    return lambda *arguments: rest(*arguments, "--host", kfp_server.url)
