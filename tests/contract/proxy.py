"""An HTTP proxy for tests: it takes every host for a server of this machine."""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


class Proxy:
    """The proxy.

    Attributes:
        asked: host and port of each request, or of each tunnel.
        credentials: USER:PASSWORD that it wants; None = none.
    """

    def __init__(self, port: int) -> None:
        """Every request and tunnel leads to `port` of this machine, whatever host it is for."""
        self.asked: list[str] = []
        self.credentials: str | None = None
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def allowed(self) -> bool:
                wanted = proxy.credentials and f"Basic {base64.b64encode(proxy.credentials.encode()).decode()}"
                if wanted and self.headers.get("Proxy-Authorization") != wanted:
                    self.send_error(407)
                    return False
                return True

            def do_CONNECT(self) -> None:
                proxy.asked.append(self.path)
                if not self.allowed():
                    return
                self.send_response(200)
                self.end_headers()
                with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as there:
                    _join(self.connection, there)  # until an end gives up, as at a certificate that it does not know

            def do_GET(self) -> None:
                url = urlsplit(self.path)
                proxy.asked.append(url.netloc)
                if not self.allowed():
                    return
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                headers = {name: value for name, value in self.headers.items() if not name.startswith("Proxy-")}
                there = http.client.HTTPConnection("127.0.0.1", port)
                there.request(self.command, url._replace(scheme="", netloc="").geturl(), body, headers)
                answer = there.getresponse()
                content = answer.read()
                self.send_response(answer.status)
                self.send_header("Content-Type", answer.headers.get("Content-Type", "text/plain"))
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                there.close()

            do_POST = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.address = f"127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True, kwargs={"poll_interval": 0.01}).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def _join(one: socket.socket, other: socket.socket) -> None:
    """Pass on what either sends until one of them closes."""
    ends = {one: other, other: one}
    while True:
        readable, _, _ = select.select([*ends], [], [], 10)
        for end in readable:
            if not (data := end.recv(65536)):
                return
            ends[end].sendall(data)
        if not readable:
            return
