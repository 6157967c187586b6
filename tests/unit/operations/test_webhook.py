"""POSTs to an address that is a secret, against real local servers."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rest_core.errors import UserError
from rest_core.operations import webhook

Serve = Callable[..., str]
SECRET = "T0KEN/B0T"


@pytest.fixture
def posted() -> list[Any]:
    return []


@pytest.fixture
def serve(posted: list[Any]) -> Iterator[Serve]:
    """serve(status, drip) starts a server that answers so; returns its URL. With `drip` its headers never end."""
    servers: list[ThreadingHTTPServer] = []

    def start(status: int = 200, *, drip: bool = False) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                if drip:
                    self.flush_headers()
                    for n in range(100):
                        self.wfile.write(f"X-{n}: n\r\n".encode())
                        time.sleep(0.05)
                if status == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/services/{SECRET}"

    yield start
    for server in servers:
        server.shutdown()


def test_the_body_is_sent(serve: Serve, posted: list[Any]) -> None:
    webhook.post(serve(), {"text": "ü"})
    assert posted == [{"text": "ü"}]


@pytest.mark.parametrize(("status", "why"), [(500, "HTTP 500"), (404, "HTTP 404"), (302, "HTTP 302")])
def test_an_answer_that_is_no_success_is_told_without_the_address(serve: Serve, status: int, why: str) -> None:
    with pytest.raises(UserError, match=rf"^127\.0\.0\.1 was not told \({why}\)$"):
        webhook.post(serve(status), {})


def test_a_server_that_trickles_does_not_hold_it_up(serve: Serve) -> None:
    url, started = serve(drip=True), time.monotonic()
    with pytest.raises(UserError, match=r"no answer within 0\.5 s"):
        webhook.post(url, {}, seconds=0.5)
    assert time.monotonic() - started < 4


def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match="ConnectionError") as error:
        webhook.post(f"http://127.0.0.1:{port}/{SECRET}", {})
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "url", [SECRET, f"ftp://host/{SECRET}", f"http://[{SECRET}", f"https://{SECRET[:0]}", "http://a:b"]
)
def test_what_is_no_address_is_not_repeated(url: str) -> None:
    with pytest.raises(UserError) as error:
        webhook.post(url, {}, seconds=5)
    assert SECRET not in str(error.value)
