"""Servers that trickle, flood, or put off: each request ends within its total, and says why."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from urllib3.exceptions import ReadTimeoutError

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.tracking import bounded_http, runs, store, waits

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
GENEROUS = 60  # seconds, on a busy machine; without the bounds these servers are waited for for minutes or for ever


@contextmanager
def server(answer: Callable[[socket.socket, bytes], None]) -> Iterator[str]:
    """Its address. `answer` gets each connection with what was asked first."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    def handle(connection: socket.socket) -> None:
        with connection:
            try:
                answer(connection, connection.recv(65536))
            except OSError:  # the client has gone
                return

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def trickle(connection: socket.socket, start: bytes) -> None:
    connection.sendall(start)
    for _ in range(6000):
        time.sleep(0.1)
        connection.sendall(b" ")


def in_body(connection: socket.socket, asked: bytes) -> None:
    trickle(connection, OK + b"Content-Length: 100000\r\n\r\n")


def in_headers(connection: socket.socket, asked: bytes) -> None:
    trickle(connection, OK + b"X-Name: ")


def never(connection: socket.socket, asked: bytes) -> None:
    time.sleep(600)


def later(connection: socket.socket, asked: bytes) -> None:
    connection.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n")


def only_healthy(connection: socket.socket, asked: bytes) -> None:
    if asked.startswith(b"GET /health"):
        connection.sendall(OK + b"Content-Length: 2\r\nConnection: close\r\n\r\nOK")
    else:
        never(connection, asked)


def flood(connection: socket.socket, asked: bytes) -> None:
    connection.sendall(OK + b"\r\n")
    while True:
        connection.sendall(b" " * 65536)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (in_body, "within 1 s"),
        (in_headers, "within 1 s"),
        (never, "within 1 s"),
        (later, "503"),
        (flood, "longer than"),
    ],
)
def test_a_request_ends_within_its_total(
    answer: Callable[[socket.socket, bytes], None], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_http, "MAX_ANSWER", 2**20)
    started = time.monotonic()
    with server(answer) as address, waits.at_most(1), pytest.raises(MlflowException) as raised:
        store.open_client(address).search_experiments()  # with MLflow's own 7 retries and 120 s for each read
    assert why in store.reason(raised.value)
    assert time.monotonic() - started < GENEROUS


@pytest.mark.parametrize("answer", [in_body, in_headers, only_healthy])
def test_connect_asks_the_api_itself_and_says_so_in_a_line(
    answer: Callable[[socket.socket, bytes], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = time.monotonic()
    with (
        server(answer) as address,
        pytest.raises(UserError, match=rf"^MLflow at {address} does not answer \(no whole answer within 5 s\); start"),
    ):
        store.connect(TrackingConfig(uri=address))
    assert time.monotonic() - started < GENEROUS


def test_a_long_wait_says_for_what(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(bounded_http, "_TOLD_AFTER", 0.3)
    for told in (False, True):
        with server(in_body) as address, waits.at_most(1, told=told), pytest.raises(MlflowException):
            store.open_client(address).search_experiments()
        said = [record for record in caplog.records if "waiting for an answer of 127.0.0.1" in record.message]
        assert len(said) == told and all(record.levelno == logging.WARNING for record in said)


def test_a_stage_is_over_although_the_server_trickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "GRACE_SECONDS", 0.5)
    started = time.monotonic()
    with server(in_body) as address:
        tracking = TrackingConfig(uri=address, experiment="test")
        with runs.stage_run(tracking, stage="train", pipeline_run="p", spool=tmp_path / "a", parameters={}) as run:
            run.metrics({"loss": 1.0}, step=1)
    assert time.monotonic() - started < GENEROUS


def test_a_download_may_take_longer_as_long_as_it_comes() -> None:
    def slow(connection: socket.socket, asked: bytes) -> None:
        connection.sendall(OK + b"Content-Length: 800000\r\n\r\n")
        for _ in range(8):
            time.sleep(0.3)
            connection.sendall(b"x" * 100_000)

    bounded_http.install()
    with server(slow) as address, waits.at_most(1):
        with http_request(get_default_host_creds(address), "/file", "GET", stream=True) as answer:
            assert sum(len(part) for part in answer.iter_content(65536)) == 800_000
        with http_request(get_default_host_creds(address), "/file", "GET", stream=True, max_retries=0) as answer:
            assert len(answer.raw.read(10)) == 10


def test_a_download_that_trickles_ends() -> None:
    bounded_http.install()
    with server(in_body) as address, waits.at_most(1):
        answer = http_request(get_default_host_creds(address), "/file", "GET", stream=True)
        with pytest.raises(ReadTimeoutError):
            answer.raw.read(50_000)


def test_what_a_good_server_says_arrives_whole() -> None:
    """Chunked, over a connection that is used again, and in several reads."""

    def good(connection: socket.socket, asked: bytes) -> None:
        while asked:
            assert b"Accept-Encoding: identity" in asked
            connection.sendall(OK + b'Transfer-Encoding: chunked\r\n\r\n5\r\n{"a":\r\n')
            time.sleep(0.1)
            connection.sendall(b"2\r\n1}\r\n0\r\n\r\n")
            asked = connection.recv(65536)

    bounded_http.install()
    with server(good) as address:
        for _ in range(3):
            assert http_request(get_default_host_creds(address), "/x", "GET").json() == {"a": 1}
