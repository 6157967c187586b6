"""The address, the credentials, the retries, and the one line for each way in which the API does not answer."""

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
from kubernetes.config import kube_config

from pipelines.cluster.errors import message

Rest = Callable[..., Any]

PROXY = "/api/v1/namespaces/kubeflow/services/ml-pipeline:http/proxy/"


def kubeconfig() -> Path:
    return Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION)


@pytest.fixture
def context_file() -> Path:
    path = Path(kfp.Client._LOCAL_KFP_CONTEXT)
    path.parent.mkdir()
    return path


@pytest.fixture
def in_pod(kfp_server: FakeKfp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is in a pod of KFP's cluster; gives the place of the token that KFP accepts from pods."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setattr(kfp.Client, "_IN_CLUSTER_DNS_NAME", kfp_server.url.removeprefix("http://"))
    monkeypatch.setattr(kfp.client, "KF_PIPELINES_SA_TOKEN_PATH", str(tmp_path / "projected"))
    return tmp_path / "projected"


@pytest.mark.parametrize("content", [None, "", "{", "[]", "current-context: x\n"])
def test_without_an_address_the_user_learns_how_to_give_one(rest: Rest, content: str | None) -> None:
    if content is not None:
        kubeconfig().write_text(content, encoding="utf-8")
    outcome = rest("status")
    assert "give --host" in outcome.error and f"no usable kubeconfig at {kubeconfig()}" in outcome.error
    assert outcome.out == ""


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


def test_a_missing_file_is_named(at_server: Rest) -> None:
    assert "token file nowhere: cannot be read" in at_server("status", "--token-file", "nowhere").error
    assert "'nowhere.pem' does not exist" in at_server("status", "--ca-cert", "nowhere.pem").error


@pytest.mark.parametrize("way", ["option", "file", "kubeconfig", "context"])
def test_a_header_that_cannot_be_sent_is_not_shown(
    rest: Rest, kfp_server: FakeKfp, way: str, tmp_path: Path, context_file: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("sec\nret", encoding="utf-8")
    host = ["--host", kfp_server.url]
    if way == "kubeconfig":
        FakeKubernetes.write_kubeconfig(kubeconfig(), kfp_server.url, token="sec\nret")
        host = []
    if way == "context":
        context_file.write_text(json.dumps({"namespace": "a", "client_authentication_cookie": "sec\nret"}))
    arguments = {"option": ["--token", "secr→t"], "file": ["--token-file", str(file)]}.get(way, [])
    error = rest("status", *host, *arguments).error
    assert "a header has a character that HTTP does not allow" in error
    assert "sec" not in error
    assert kfp_server.requests == []


def test_kfps_context_file_gives_cookie_header_and_namespace(
    at_server: Rest, kfp_server: FakeKfp, context_file: Path
) -> None:
    settings = {
        "namespace": "team-a",
        "client_authentication_cookie": "authservice_session=abc",
        "client_authentication_header_name": "kubeflow-userid",
        "client_authentication_header_value": "ada@example.org",
    }
    context_file.write_text(json.dumps(settings), encoding="utf-8")
    kfp_server.multi_user = True
    assert at_server("status").code == 0
    [request] = kfp_server.sent("GET", "/runs")
    assert request.query["namespace"] == ["team-a"]
    assert request.headers["Cookie"] == "authservice_session=abc"
    assert request.headers["kubeflow-userid"] == "ada@example.org"


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "{}", "\x00"])
def test_a_context_file_of_another_form_is_named(at_server: Rest, context_file: Path, content: str) -> None:
    context_file.write_text(content, encoding="utf-8")
    assert at_server("status").error.startswith(f"{context_file} is not a context file of kfp")


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


def test_inside_a_cluster_the_pods_identity_is_used(rest: Rest, kfp_server: FakeKfp, in_pod: Path) -> None:
    in_pod.write_text("of-the-pod", encoding="utf-8")
    kfp_server.token = "of-the-pod"
    outcome = rest("status")
    assert (outcome.code, outcome.err) == (0, "")
    assert kfp_server.sent("GET", "/runs")


def test_a_pod_without_a_token_asks_without_one(
    rest: Rest, kfp_server: FakeKfp, in_pod: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As is usual where KFP serves a single user."""
    outcome = rest("status")
    assert (outcome.code, outcome.err, caplog.messages) == (0, "", [])  # of kfp on a missing token
    assert "authorization" not in kfp_server.requests[0].headers


@pytest.mark.parametrize("token", ["mine", "given", "given by file"])
def test_outside_a_cluster_the_kubeconfigs_proxy_is_used(
    rest: Rest, kfp_server: FakeKfp, token: str, tmp_path: Path
) -> None:
    """With the kubeconfig's identity, unless a token is given."""
    FakeKubernetes.write_kubeconfig(kubeconfig(), kfp_server.url, token="mine")
    kfp_server.prefix = PROXY
    kfp_server.token = token.split()[0]
    (tmp_path / "token").write_text("given", encoding="utf-8")
    arguments = {"given": ["--token", "given"], "given by file": ["--token-file", str(tmp_path / "token")]}
    assert rest("status", *arguments.get(token, [])).code == 0
    assert kfp_server.sent("GET", "/runs")


def test_the_kubeconfigs_token_does_not_reach_another_host(at_server: Rest, kfp_server: FakeKfp) -> None:
    FakeKubernetes.write_kubeconfig(kubeconfig(), "http://127.0.0.1:1", token="mine")
    assert at_server("status").code == 0
    assert not any("authorization" in request.headers for request in kfp_server.requests)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_credentials_do_not_follow_a_redirect(
    at_server: Rest, kfp_server: FakeKfp, contract: Any, context_file: Path, method: str
) -> None:
    """kfp's client alone follows it with the context file's header, and with the body of a POST."""
    header = {"client_authentication_header_name": "kubeflow-userid", "client_authentication_header_value": "ada"}
    context_file.write_text(json.dumps({"namespace": "a", **header}), encoding="utf-8")
    other = FakeKfp(contract)
    try:
        kfp_server.redirect_to = other.url
        kfp_server.fail(method, "/runs", "redirect")
        command = ["status"] if method == "GET" else ["submit", "--profile", "tiny"]
        assert f"with 302: Found, {other.url}: a log-in page" in at_server(*command, "--token", "s3cret").error
        assert other.requests == []
    finally:
        other.close()


def test_reads_are_repeated_after_what_passes(at_server: Rest, kfp_server: FakeKfp) -> None:
    for how in (503, "drop", "half"):
        kfp_server.fail("GET", "/runs", how)
    assert at_server("status").code == 0
    assert len(kfp_server.sent("GET", "/runs")) == 4


def test_a_server_that_asks_for_a_pause_gets_it(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.fail("GET", "/runs", 429, headers={"Retry-After": "1"})
    started = time.monotonic()
    assert at_server("status").code == 0
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("how", [400, 401, 403, 404, 500, "page", "garbage", b"null", b"[]"])
def test_reads_are_not_repeated_after_what_stays(at_server: Rest, kfp_server: FakeKfp, how: int | str | bytes) -> None:
    kfp_server.fail("GET", "/runs", how)
    assert at_server("status").error
    assert len(kfp_server.sent("GET", "/runs")) == 1


@pytest.mark.parametrize("path", ["/runs", "/healthz"])
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (500, "with 500: made to fail with 500: try again"),
        (503, "kubectl get pods"),
        (429, "try again"),
        ("hang", "sent nothing for 0.2 s"),
        ("drop", "gave no complete answer (Remote end closed connection"),
        ("half", "IncompleteRead(12 bytes read"),
        ("page", "'<!doctype html><html><head><title>Log in to Dex</title>"),
        ("garbage", "no JSON object: a log-in page"),
        (b"[" * 100_000, "no JSON object"),
        (404, "rest schedule list"),
        ("proxy", "with 403: RBAC: access denied"),
    ],
)
def test_what_stays_wrong_is_one_line(
    at_server: Rest, kfp_server: FakeKfp, path: str, how: int | str | bytes, expected: str
) -> None:
    kfp_server.fail("GET", path, how, times=100)
    error = at_server("status", "--timeout", "0.2").error
    assert error.startswith(kfp_server.url)
    assert expected in error


def test_an_address_without_the_api(rest: Rest, kfp_server: FakeKfp) -> None:
    error = rest("status", "--host", f"{kfp_server.url}/pipeline/extra").error
    assert "answers /pipeline/extra/apis/v2beta1/healthz with 404" in error and "--host" in error
    kfp_server.problems.clear()  # that path is not in the contract, rightly


def test_nobody_listening(rest: Rest) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    error = rest("status", "--host", address).error
    assert error.startswith(f"{address} cannot be reached")
    assert "Connection refused" in error and "port-forward" in error


@pytest.mark.parametrize(
    "host", ["http://kfp.invalid:8888", "kfp.invalid", "http://:::", "ftp://x", "http://", "http://u:secret@["]
)
def test_an_address_of_nobody(rest: Rest, host: str) -> None:
    error = rest("status", "--host", host).error
    assert "--host" in error
    assert "secret" not in error


def test_a_server_without_tls(rest: Rest, kfp_server: FakeKfp) -> None:
    error = rest("status", "--host", kfp_server.url.replace("http:", "https:")).error
    assert "allows no TLS connection" in error
    assert error.endswith("give --host with http://")


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"message": "\x1b[31mred\x07\nbell"}),
        json.dumps({"error": {"message": "\x1b[31mred\u2028bell"}}),
        b"\x1b[31mred\x07\r\nbell",
    ],
)
def test_a_servers_message_is_one_line_and_nothing_for_the_terminal(body: str | bytes) -> None:
    assert message(body) == "[31mred bell"


def test_names_are_text_and_nothing_for_the_terminal(at_server: Rest, kfp_server: FakeKfp) -> None:
    run_id = kfp_server.add_run("a[/b]\x1b[31m\x07", "RUNNING", {"x[/red]y": "FAILED"})
    kfp_server.runs[run_id]["error"] = {"message": "[bold]\x9bno"}
    listed, shown = at_server("status").out, at_server("status", run_id).out
    assert "a[/b] [31m" in listed and "a[/b] [31m" in shown
    assert "x[/red]y" in shown and "[bold] no" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(listed + shown)
