"""Which API, as whom; and what is said when it does not answer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_kfp
import kfp
import pytest
from fake_kfp import FakeKfp
from fake_kubernetes import FakeKubernetes
from kubernetes.config import incluster_config, kube_config

from pipelines.cluster import errors

Rest = Callable[..., Any]


def test_without_an_address_the_user_is_told_how_to_give_one(rest: Rest) -> None:
    assert "--host" in rest("status").error


def test_the_address_may_come_from_kfps_own_variable(
    rest: Rest, kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KF_PIPELINES_ENDPOINT", kfp_server.url + "/")
    assert rest("status").code == 0
    assert kfp_server.sent("GET", "/runs")


@pytest.mark.parametrize("way", ["option", "variable", "file", "file variable"])
def test_a_token_is_sent(
    at_server: Rest, kfp_server: FakeKfp, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kfp_server.token = "s3cret"
    assert "--token-file" in at_server("status").error
    file = tmp_path / "token"
    file.write_text("s3cret\n", encoding="utf-8")
    arguments = {"option": ["--token", "s3cret"], "file": ["--token-file", str(file)]}.get(way, [])
    if way == "variable":
        monkeypatch.setenv("KF_PIPELINES_TOKEN", "s3cret")
    if way == "file variable":
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file))
    assert at_server("status", *arguments).code == 0


def test_a_token_file_is_read_for_every_request(
    at_server: Rest, kfp_server: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A projected token is renewed while a command waits for days."""
    file = tmp_path / "token"
    file.write_text("first", encoding="utf-8")
    kfp_server.token = "first"
    kfp_server.progress = [("RUNNING", {}), ("SUCCEEDED", {})]
    get_run = FakeKfp.get_run

    def renewing(self: FakeKfp, *arguments: Any, **named: Any) -> Any:
        kfp_server.token = "second"
        file.write_text("second", encoding="utf-8")
        return get_run(self, *arguments, **named)

    monkeypatch.setitem(fake_kfp._HANDLERS, "GET runs/{run_id}", renewing)
    assert at_server("submit", "--profile", "tiny", "--wait", "--token-file", str(file)).code == 0
    assert {request.headers["authorization"] for request in kfp_server.requests} == {"Bearer first", "Bearer second"}


@pytest.mark.parametrize("content", [None, ""])
def test_a_token_file_that_gives_no_token_is_named(at_server: Rest, tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    assert f"--token-file {file}" in at_server("status", "--token-file", str(file)).error


@pytest.mark.parametrize("token", ["sec\nret", "sec ret", "secr→t", "sec\x07ret"])
@pytest.mark.parametrize("way", ["option", "file", "pod"])
def test_what_is_no_token_is_named_and_not_shown(
    rest: Rest, kfp_server: FakeKfp, token: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    arguments = ["--host", kfp_server.url, "--token" if way == "option" else "--token-file"]
    if way == "pod":
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setattr(kfp.client, "KF_PIPELINES_SA_TOKEN_PATH", str(file))
        arguments = []
    else:
        arguments.append(token if way == "option" else str(file))
    error = rest("status", *arguments).error
    assert "is no token: it has a blank" in error
    assert {"option": "--token (KF_PIPELINES_TOKEN)", "file": f"--token-file {file}", "pod": str(file)}[way] in error
    assert "sec" not in error and "ret" not in error
    assert kfp_server.requests == []


def test_a_header_that_cannot_be_sent_is_not_shown(rest: Rest, kfp_server: FakeKfp) -> None:
    """From where only the libraries look: here the kubeconfig."""
    place = Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION)
    FakeKubernetes.write_kubeconfig(place, kfp_server.url, token="sec\nret")
    error = rest("status").error
    assert "a header has a character that HTTP does not allow" in error
    assert "sec" not in error


def test_kfps_context_file_gives_cookie_header_and_namespace(at_server: Rest, kfp_server: FakeKfp) -> None:
    context = Path(kfp.Client._LOCAL_KFP_CONTEXT)
    context.parent.mkdir()
    settings = {
        "namespace": "team-a",
        "client_authentication_cookie": "authservice_session=abc",
        "client_authentication_header_name": "kubeflow-userid",
        "client_authentication_header_value": "ada@example.org",
    }
    context.write_text(json.dumps(settings), encoding="utf-8")
    kfp_server.multi_user = True
    assert at_server("status").code == 0
    [request] = kfp_server.sent("GET", "/runs")
    assert request.query["namespace"] == ["team-a"]
    assert request.headers["Cookie"] == "authservice_session=abc"
    assert request.headers["kubeflow-userid"] == "ada@example.org"


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "null", '"x"', "3", "{}", "[" * 100_000, b"\xff", None),
        {"namespace": 3},
        {"namespace": "a", "client_authentication_cookie": 5},
        {"namespace": "a", "client_authentication_cookie": "se\ncret"},
        {"namespace": "a", "client_authentication_header_name": "x"},
        {"namespace": "a", "client_authentication_header_name": "x y", "client_authentication_header_value": "secret"},
        {"namespace": "a", "client_authentication_header_name": "x", "client_authentication_header_value": "secr→t"},
    ],
    ids=lambda content: str(content)[:40],
)
def test_a_context_file_of_another_form_is_named(at_server: Rest, kfp_server: FakeKfp, content: Any) -> None:
    context = Path(kfp.Client._LOCAL_KFP_CONTEXT)
    context.parent.mkdir()
    if content is None:
        context.mkdir()
    elif isinstance(content, bytes):
        context.write_bytes(content)
    else:
        context.write_text(json.dumps(content) if isinstance(content, dict) else content, encoding="utf-8")
    error = at_server("status").error
    assert error.startswith(str(context))
    assert "secr" not in error
    assert kfp_server.requests == []


def test_for_several_users_the_namespace_is_part_of_every_request(
    at_server: Rest, kfp_server: FakeKfp, tmp_path: Path
) -> None:
    kfp_server.multi_user = True
    platform = tmp_path / "platform.yaml"
    platform.write_text("namespace: team-b\n", encoding="utf-8")
    assert at_server("submit", "--profile", "tiny", "--upload", "--platform", str(platform)).code == 0
    assert [experiment["namespace"] for experiment in kfp_server.experiments.values()] == ["team-b"]
    assert [pipeline["namespace"] for pipeline in kfp_server.pipelines.values()] == ["team-b"]
    assert at_server("status", "--namespace", "team-c").code == 0
    assert kfp_server.sent("GET", "/runs")[-1].query["namespace"] == ["team-c"]


def test_for_a_single_user_no_namespace_is_sent(at_server: Rest, kfp_server: FakeKfp) -> None:
    assert at_server("submit", "--profile", "tiny", "--namespace", "kubeflow").code == 0
    assert all("namespace" not in experiment for experiment in kfp_server.experiments.values())


def test_inside_a_cluster_the_pods_identity_is_used(
    rest: Rest, kfp_server: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in {"token": "of-kubernetes", "ca.crt": "none", "projected": "of-the-pod"}.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setattr(kfp.client, "KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "projected"))
    monkeypatch.setattr(kfp.Client, "_IN_CLUSTER_DNS_NAME", kfp_server.url.removeprefix("http://"))
    kfp_server.token = "of-the-pod"
    outcome = rest("status")
    assert (outcome.code, outcome.err) == (0, "")
    assert kfp_server.sent("GET", "/runs")


@pytest.mark.parametrize("mounted", [True, False], ids=["no token for KFP", "no service account"])
def test_a_pod_without_a_token_asks_without_one(
    rest: Rest,
    kfp_server: FakeKfp,
    mounted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As is usual where KFP serves a single user."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    for constant, name in (("SERVICE_TOKEN_FILENAME", "token"), ("SERVICE_CERT_FILENAME", "ca.crt")):
        monkeypatch.setattr(incluster_config, constant, str(tmp_path / name))
        if mounted:
            (tmp_path / name).write_text("x", encoding="utf-8")
    monkeypatch.setattr(kfp.client, "KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "projected"))
    monkeypatch.setattr(kfp.Client, "_IN_CLUSTER_DNS_NAME", kfp_server.url.removeprefix("http://"))
    outcome = rest("status")
    assert (outcome.code, outcome.err, caplog.messages) == (0, "", [])  # of kfp on a missing token
    assert "authorization" not in kfp_server.requests[0].headers


_USER = "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\n"
_CLUSTER = "clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\n"
_COMMAND = "{apiVersion: client.authentication.k8s.io/v1, command: no-such-log-in}"


@pytest.mark.parametrize("host", [(), ("--host", "")], ids=["no host", "empty host"])
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "is empty"),
        ("{", "while parsing"),
        ("[]", "not written as kubectl writes it"),
        ("current-context: x\n", "Invalid kube-config file"),
        (f"{_USER}{_CLUSTER}users: [{{name: u, user: {{exec: {_COMMAND}}}}}]\n", "no-such-log-in"),
    ],
)
def test_an_unusable_kubeconfig_is_named(rest: Rest, content: str, told: str, host: tuple[str, ...]) -> None:
    place = Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION)
    place.write_text(content, encoding="utf-8")
    outcome = rest("status", *host)
    assert outcome.error.startswith(f"the kubeconfig {place} cannot be used (")
    assert told in outcome.error
    assert outcome.out == ""


def test_a_given_token_comes_before_that_of_the_kubeconfig(rest: Rest, kfp_server: FakeKfp, tmp_path: Path) -> None:
    FakeKubernetes.write_kubeconfig(Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION), kfp_server.url, token="mine")
    kfp_server.prefix = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"
    kfp_server.token = "given"
    (tmp_path / "token").write_text("given", encoding="utf-8")
    assert rest("status", "--token", "given").code == 0
    assert rest("status", "--token-file", str(tmp_path / "token")).code == 0


def test_outside_a_cluster_the_kubeconfigs_proxy_is_used(rest: Rest, kfp_server: FakeKfp) -> None:
    FakeKubernetes.write_kubeconfig(Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION), kfp_server.url, token="mine")
    kfp_server.prefix = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"
    kfp_server.token = "mine"
    assert rest("status").code == 0
    assert kfp_server.sent("GET", "/runs")


def test_reads_are_tried_again_after_what_passes(at_server: Rest, kfp_server: FakeKfp) -> None:
    for how in (503, "drop", "half"):
        kfp_server.fail("GET", "/runs", how)
    assert at_server("status").code == 0
    assert len(kfp_server.sent("GET", "/runs")) == 4


def test_a_server_that_asks_for_a_pause_gets_it(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.fail("GET", "/runs", 429, headers={"Retry-After": "1"})
    started = time.monotonic()
    assert at_server("status").code == 0
    assert time.monotonic() - started >= 1


def test_a_pause_that_does_not_read_is_none(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.fail("GET", "/runs", 503, headers={"Retry-After": "soon"})
    assert at_server("status").code == 0


@pytest.mark.parametrize("how", [401, 403, 404, 400, "page", "garbage", "redirect"])
def test_reads_are_not_tried_again_after_what_stays(at_server: Rest, kfp_server: FakeKfp, how: int | str) -> None:
    kfp_server.fail("GET", "/runs", how)
    assert at_server("status").error
    assert len(kfp_server.sent("GET", "/runs")) == 1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (500, "cannot answer now (500: made to fail with 500)"),
        (503, "kubectl get pods"),
        (429, "cannot answer now"),
        ("hang", "sent nothing for 0.2 s"),
        ("drop", "closed the connection before its answer was whole"),
        ("half", "closed the connection before its answer was whole (12 bytes came)"),
        ("page", "a web page ('Log in to Dex')"),
        ("garbage", "no valid JSON"),
        ("redirect", "sends requests on to https://dex.example/auth"),
        (404, "rest schedule list"),
        ("proxy", "forbids this (403: RBAC: access denied)"),
    ],
)
def test_what_stays_wrong_is_told_in_one_line(
    at_server: Rest, kfp_server: FakeKfp, how: int | str, message: str
) -> None:
    kfp_server.fail("GET", "/runs", how, times=100)
    error = at_server("status", "--timeout", "0.2").error
    assert error.startswith(kfp_server.url)
    assert message in error


def test_an_address_without_the_api_is_told(rest: Rest, kfp_server: FakeKfp) -> None:
    error = rest("status", "--host", f"{kfp_server.url}/pipeline/extra").error
    assert "has no KFP API (404 for /pipeline/extra/apis/v2beta1/healthz)" in error
    kfp_server.problems.clear()  # that path is not in the contract, rightly


def test_nobody_listening_is_told(rest: Rest) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    error = rest("status", "--host", address).error
    assert f"{address} cannot be reached" in error
    assert "Connection refused" in error and "port-forward" in error


def test_a_name_that_nobody_knows_is_told(rest: Rest) -> None:
    assert "this name is not known here" in rest("status", "--host", "http://kfp.invalid:8888").error


def test_a_server_without_tls_is_told(rest: Rest, kfp_server: FakeKfp) -> None:
    error = rest("status", "--host", kfp_server.url.replace("http:", "https:")).error
    assert "no TLS connection" in error
    assert error.endswith("give --host with http://")


def test_a_missing_authority_is_named(at_server: Rest) -> None:
    assert "--ca-cert nowhere.pem: no such file" in at_server("status", "--ca-cert", "nowhere.pem").error


@pytest.mark.parametrize(
    "host", ["http://:::", "127.0.0.1:8888", "ftp://x", "http://", "http://a b", "http://x/#/runs", "http://u:secret@["]
)
def test_what_is_no_address_is_told(rest: Rest, host: str) -> None:
    error = rest("status", "--host", host).error
    assert "is no address of an API: give it as https://" in error
    assert "secret" not in error


@pytest.mark.parametrize("seconds", ["nan", "1e30", "inf", "0"])
def test_what_is_no_time_is_told(at_server: Rest, seconds: str) -> None:
    assert "--timeout" in at_server("status", "--timeout", seconds).error


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (json.dumps({"message": "\x1b[31mred\x07\nbell"}).encode(), {}),
        (json.dumps({"error": {"message": "\x1b[31mred\u2028bell"}}).encode(), {}),
        (b"\x1b[31mred\x07\r\nbell", {"Content-Type": "text/plain"}),
    ],
)
def test_what_a_server_says_is_one_line_and_nothing_for_the_terminal(body: bytes, headers: dict[str, str]) -> None:
    error = errors.refused("GET", "http://kfp", 500, body=body, headers=headers, reason="")
    assert error.said == "500: [31mred bell"
