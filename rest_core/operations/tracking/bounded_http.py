"""A bound on every answer of an MLflow server: on its time as a whole, its retries included, and on its size.

MLflow's time-out (MLFLOW_HTTP_REQUEST_TIMEOUT, 120 s by default) is for each read and for each of 7 retries: a server,
or a proxy before it, that answers a byte now and then holds its client for ever. Here the same number is the total of
what a request waits: for connections, for its answer, and between retries. What it sends itself does not count, and
what is downloaded to a file may take as long as it comes with `_BYTES_A_SECOND`.

MLflow has no setting for this. `install` has its requests take the adapter of this module, in the whole process.
"""

from __future__ import annotations

import http.client
import io
import logging
import socket
import time
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import requests
import urllib3
from mlflow.utils import request_utils
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, ResponseError

from rest_core.operations.tracking import waits

logger = logging.getLogger(__name__)

MAX_ANSWER = 2**27
"""Bytes of an answer that is no download."""
_DEFAULT_SECONDS = 120.0
_BYTES_A_SECOND = 50_000
_TOLD_AFTER = 5.0  # seconds


@dataclass
class _Budget:
    """What is left of the time of a request."""

    host: str
    total: float  # seconds
    left: float
    download: bool
    told: bool  # whether somebody has been told what is waited for, or need not be

    def spend(self, seconds: float) -> None:
        self.left -= seconds

    def require(self) -> float:
        """What is left. Raises `TimeoutError` where nothing is."""
        if self.left <= 0:
            raise TimeoutError(f"no whole answer within {self.total:g} s")
        return self.left


_budget: ContextVar[_Budget | None] = ContextVar("budget", default=None)


def install() -> None:
    """Have MLflow's requests bounded from now on."""
    request_utils.TCPKeepAliveHTTPAdapter = _Adapter  # type: ignore[misc]
    request_utils.Retry = _Retry  # type: ignore[misc]


class _Reader(io.RawIOBase):
    """Reads a socket as long as the time of its request lasts."""

    def __init__(self, sock: socket.socket, stream: Any, budget: _Budget) -> None:
        self._socket, self._stream, self._budget = sock, stream, budget
        self._size = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        budget = self._budget
        while True:
            left = budget.require()
            self._socket.settimeout(left if budget.told else min(left, _TOLD_AFTER))
            started = time.monotonic()
            try:
                count = self._socket.recv_into(buffer)
            except TimeoutError:
                count = -1
            budget.spend(time.monotonic() - started)
            if not budget.told and budget.total - budget.left >= _TOLD_AFTER:
                budget.told = True
                logger.warning("waiting for an answer of %s, at most %.0f s more", budget.host, budget.left)
            if count >= 0:
                break
        self._size += count
        if budget.download:
            budget.left = min(budget.total, budget.left + count / _BYTES_A_SECOND)
        elif self._size > MAX_ANSWER:
            raise OSError(f"the answer is longer than {MAX_ANSWER} bytes")
        return count

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **keywords: Any) -> None:
        super().__init__(sock, *args, **keywords)
        if (budget := _budget.get()) is not None:
            self.fp = io.BufferedReader(_Reader(sock, self.fp, budget))


class _Timed:
    """Of a connection: counts the time that it takes to be there."""

    timeout: Any

    def connect(self) -> None:
        budget = _budget.get()
        if budget is None:
            super().connect()  # type: ignore[misc]
            return
        self.timeout, started = budget.require(), time.monotonic()
        try:
            super().connect()  # type: ignore[misc]
        finally:
            budget.spend(time.monotonic() - started)


class _Connection(_Timed, HTTPConnection):
    response_class = _Answer


class _SecureConnection(_Timed, HTTPSConnection):
    response_class = _Answer


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _Retry(urllib3.Retry):
    """Retries no longer than the time of a request lasts, whatever a server's `Retry-After` asks for."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> Any:
        following = super().increment(method, url, response, error, _pool, _stacktrace)
        if (budget := _budget.get()) is not None:
            wait = following.get_backoff_time()
            if self.respect_retry_after_header and response is not None:
                wait = self.get_retry_after(response) or wait
            if wait >= budget.left:
                status = None if response is None else ResponseError(f"HTTP {response.status}")
                raise MaxRetryError(_pool, url or "", error or status)
            budget.spend(wait)
        return following


class _Adapter(request_utils.TCPKeepAliveHTTPAdapter):
    def init_poolmanager(self, *args: Any, **keywords: Any) -> None:
        super().init_poolmanager(*args, **keywords)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **keywords)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
        return manager

    def send(
        self, request: Any, stream: bool = False, timeout: Any = None, *args: Any, **keywords: Any
    ) -> requests.Response:
        seconds = min(timeout if isinstance(timeout, (int, float)) else _DEFAULT_SECONDS, waits.bound())
        host = urllib3.util.parse_url(request.url or "").host or "MLflow"
        if not stream:  # compressed, its size would say nothing
            request.headers["Accept-Encoding"] = "identity"
        told = seconds <= _TOLD_AFTER or not waits.are_told()
        token = _budget.set(_Budget(host, seconds, seconds, stream, told))
        try:
            answer = super().send(request, stream, timeout, *args, **keywords)
        finally:
            _budget.reset(token)
        if not stream and "Content-Encoding" in answer.headers:
            answer.close()
            raise requests.exceptions.ContentDecodingError(f"{host} compresses its answer, which was asked not to be")
        return answer
