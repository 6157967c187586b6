"""KFP and Kubernetes behind a proxy and behind private certificates: by the variables that other clients read too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from certificates import write_certificate
from fake_kfp import FakeKfp
from fake_kubernetes import FakeKubernetes
from kubernetes.config import kube_config
from proxy import Proxy

from pipelines.cluster.network import AUTHORITIES

Rest = Callable[..., Any]
HOST = "kfp.corp.example"
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXIES, *AUTHORITIES):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def proxy(kfp_server: FakeKfp) -> Iterator[Proxy]:
    server = Proxy(int(kfp_server.url.rpartition(":")[2]))
    yield server
    server.close()


@pytest.fixture
def certificate(kfp_server: FakeKfp, tmp_path: Path) -> Path:
    """Of the server, which from now on speaks TLS."""
    file, key = write_certificate(tmp_path, HOST)
    kfp_server.serve_tls(file, key)
    return file


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("path", ["", "/pipeline"])
def test_the_api_is_reached_through_the_proxy(
    rest: Rest, kfp_server: FakeKfp, proxy: Proxy, name: str, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"http://{proxy.address}")
    kfp_server.prefix = path
    kfp_server.add_run("mine", "SUCCEEDED")
    outcome = rest("status", "mine", "--host", f"http://{HOST}{path}")
    assert outcome.code == 0, outcome
    assert proxy.asked and set(proxy.asked) == {HOST}
    assert f"http://{HOST}{path}/#/runs/details/" in outcome.out


def test_requests_that_change_something_go_through_it_too(
    rest: Rest, kfp_server: FakeKfp, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy.address)  # without a scheme, as some write it
    assert rest("submit", "--profile", "tiny", "--host", f"http://{HOST}").code == 0
    assert kfp_server.sent("POST", "/runs")


@pytest.mark.parametrize("no_proxy", [HOST, "corp.example", ".example,localhost", "*"])
def test_no_proxy_names_what_is_reached_without(
    rest: Rest, proxy: Proxy, no_proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert f"http://{HOST} cannot be reached" in rest("status", "--host", f"http://{HOST}").error
    assert proxy.asked == []


def test_a_port_forward_needs_no_proxy(at_server: Rest, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.address}")
    assert at_server("status").code == 0
    assert proxy.asked == []


def test_a_proxy_that_wants_a_password_gets_it(
    rest: Rest, kfp_server: FakeKfp, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy.credentials = "me:p@ss/w"
    monkeypatch.setenv("HTTP_PROXY", f"http://me:p%40ss%2Fw@{proxy.address}")
    assert rest("status", "--host", f"http://{HOST}").code == 0
    monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@{proxy.address}")
    error = rest("status", "--host", f"http://{HOST}").error
    assert "407" in error and "HTTPS_PROXY and HTTP_PROXY" in error and "secret" not in error


def test_a_proxy_that_is_away_is_named_by_its_variable(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:1")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:secret@127.0.0.1:1")
    for scheme in ("http", "https"):
        error = rest("status", "--host", f"{scheme}://{HOST}").error
        assert error.startswith(f"{scheme}://{HOST} is not reached through the proxy (")
        assert "check HTTPS_PROXY and HTTP_PROXY" in error and "NO_PROXY" in error and "secret" not in error


def test_a_kind_of_proxy_that_is_not_spoken_is_one_line(rest: Rest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1")
    assert "a proxy with socks5://, which is not spoken here" in rest("status", "--host", f"http://{HOST}").error


def test_a_private_certificate_is_refused_with_the_variable_that_names_it(
    at_server: Rest, rest: Rest, kfp_server: FakeKfp, certificate: Path
) -> None:
    error = rest("status", "--host", kfp_server.url).error
    assert error.startswith(f"{kfp_server.url} allows no TLS connection (")
    assert "certificate" in error and "--ca-cert, or by REQUESTS_CA_BUNDLE" in error


@pytest.mark.parametrize("way", ["--ca-cert", *AUTHORITIES])
def test_a_private_certificate_is_taken_where_it_is_named(
    rest: Rest, kfp_server: FakeKfp, certificate: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--ca-cert", str(certificate)] if way == "--ca-cert" else []
    if way != "--ca-cert":
        monkeypatch.setenv(way, str(certificate))
    assert rest("status", "--host", kfp_server.url, *arguments).code == 0


def test_tls_through_a_proxy(
    rest: Rest, kfp_server: FakeKfp, certificate: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{proxy.address}")
    assert "REQUESTS_CA_BUNDLE" in rest("status", "--host", f"https://{HOST}").error
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert rest("status", "--host", f"https://{HOST}").code == 0
    assert set(proxy.asked) == {f"{HOST}:443"}


def test_a_missing_file_of_authorities_is_named_by_its_variable(
    rest: Rest, kfp_server: FakeKfp, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere.pem")
    assert "SSL_CERT_FILE=/nowhere.pem: no such file" in rest("status", "--host", kfp_server.url).error


def test_logs_of_pods_go_through_the_proxy_too(
    rest: Rest, kfp_server: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubernetes = FakeKubernetes("kubeflow")
    server = Proxy(int(kubernetes.url.rpartition(":")[2]))
    try:
        FakeKubernetes.write_kubeconfig(
            Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION), "http://kubernetes.corp.example", token="t"
        )
        run_id = kfp_server.add_run("mine", "FAILED", {"rest-rl": "FAILED"})
        kubernetes.add_pod(
            "wf-1",
            run_id=run_id,
            node="wf.root.rest-rl.executor",
            created="2026-01-01T00:00:00Z",
            log="a line\n",
            state={"terminated": {"exitCode": 1, "reason": "Error"}},
            phase="Failed",
        )
        monkeypatch.setenv("HTTP_PROXY", f"http://{server.address}")
        assert rest("logs", "mine", "--host", kfp_server.url).out == "a line\n"
        assert set(server.asked) == {"kubernetes.corp.example"}
        monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
        outcome = rest("logs", "mine", "--host", kfp_server.url, "--follow")
        assert "is not reached through the proxy" in outcome.error and "HTTP_PROXY" in outcome.error
    finally:
        server.close()
        kubernetes.close()


def test_a_password_in_the_address_is_refused(rest: Rest) -> None:
    error = rest("status", "--host", f"http://me:pa/ss@{HOST}").error
    assert "--host holds a password" in error and "pa/ss" not in error
