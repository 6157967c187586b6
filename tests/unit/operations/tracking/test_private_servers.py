"""Servers behind a private certificate, and workspaces: what MLflow's client is told by its environment holds here."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from certificates import write_certificate

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.tracking import store


@pytest.fixture
def private_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """Its address and its certificate."""
    for name in ("MLFLOW_TRACKING_INSECURE_TLS", "MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = json.dumps({"experiments": []}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: the test's output is no access log."""

    certificate, key = write_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_port}", certificate
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_SERVER_CERT_PATH", "REQUESTS_CA_BUNDLE"])
def test_a_private_certificate_is_trusted_where_mlflow_or_requests_is_told_of_it(
    private_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    address, certificate = private_server
    monkeypatch.setenv(variable, str(certificate))
    assert store.connect(TrackingConfig(uri=address)).search_experiments() == []
    assert store.unreachable(address) is None


@pytest.mark.parametrize("variable", [None, "SSL_CERT_FILE"])  # which requests do not read
def test_a_certificate_that_is_not_trusted_is_told_as_that(
    private_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch, variable: str | None
) -> None:
    address, certificate = private_server
    if variable is not None:
        monkeypatch.setenv(variable, str(certificate))
    words = "certificate is not trusted.*MLFLOW_TRACKING_SERVER_CERT_PATH or REQUESTS_CA_BUNDLE"
    with pytest.raises(UserError, match=words) as raised:
        store.connect(TrackingConfig(uri=address))
    assert "start it" not in str(raised.value) and "does not answer" not in str(raised.value)


def test_tls_is_not_verified_where_mlflow_is_told_so(
    private_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert store.connect(TrackingConfig(uri=private_server[0])).search_experiments() == []


def test_a_workspace_that_the_server_does_not_have_is_one_line(
    private_server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, certificate = private_server
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    monkeypatch.setenv("MLFLOW_WORKSPACE", "team-a")
    with pytest.raises(UserError, match=r"^MLflow at https://127.0.0.1:\d+: .*'team-a'.*does not support workspaces"):
        store.connect(TrackingConfig(uri=address))
    page = store.where_to_look(address, "1", "abc")
    assert page == f"{address}/#/experiments/1/runs/abc?workflowType=machine_learning&workspace=team-a"
