"""JSON over HTTP to a vLLM server, with errors that say what to do."""

from __future__ import annotations

import json
import logging
import time
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException
from typing import Any

from rest_core.errors import UserError
from rest_core.rollout.vllm_sampling import VERSION

log = logging.getLogger(__name__)

RETRY_AFTER = (0.5, 2.0, 8.0)  # seconds between attempts at a server that cannot be reached
_BUSY = {502, 503, 504}  # answers of a proxy before the server, or of a server that starts


class Server:
    """JSON over HTTP to one vLLM server. A proxy is never asked: the server is part of the training.

    What fails is a `UserError` that says what to do. A server that cannot be reached is tried again: each request asks
    for the same thing, however often it is made.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST `body` to `path`, GET without one; returns the JSON object that came back, {} for an empty answer."""
        for pause in (*RETRY_AFTER, None):
            try:
                return self._once(path, body)
            except _Unreachable as error:
                if pause is None:
                    raise UserError(
                        f"rollout server {self.url}: {error} ({path}); look at its log and start it again "
                        "(`rest serve-rollouts`), then start the training again: it goes on from its last checkpoint"
                    ) from None
                log.warning("rollout server %s: %s (%s); trying again in %g s", self.url, error, path, pause)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def wait(self) -> None:
        """Return once the server answers; it may still be loading when a training starts.

        Raises:
            UserError: not within the time limit, or it is not a server as `rest serve-rollouts` starts it.
        """
        end, told = time.monotonic() + self.timeout, False
        while True:
            try:
                version = self._once("/version", None).get("version")
                break
            except _Unreachable as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"rollout server {self.url}: {error}, for {self.timeout:g} s; start it with "
                        "`rest serve-rollouts`, and set rl.engine.url to where it listens"
                    ) from None
                if not told:
                    log.warning("waiting for the rollout server %s (%s)", self.url, error)
                    told = True
                time.sleep(min(2.0, self.timeout))
        log.info("rollout server %s runs vLLM %s", self.url, version)
        try:
            self._once("/weight_info", None)
        except (UserError, _Unreachable) as error:
            raise UserError(
                f"rollout server {self.url}: vLLM {version} does not take weights ({error}); start vLLM {VERSION} or "
                "later with `rest serve-rollouts`"
            ) from None

    def _once(self, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data, {"Content-Type": "application/json"})
        try:
            with self._opener.open(request, timeout=self.timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            with error:
                said = _message(error.read())
            if error.code in _BUSY:
                raise _Unreachable(f"answers {error.code}") from None
            raise UserError(f"rollout server {self.url}: {path} answers {error.code}: {said}") from None
        except TimeoutError:
            raise self._late(path) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise self._late(path) from None
            raise _Unreachable(f"cannot be reached: {error.reason}") from None
        except (HTTPException, ConnectionError) as error:
            raise _Unreachable(f"broke off its answer: {type(error).__name__} {error}".rstrip()) from None
        if not text:
            return {}
        try:
            answer = json.loads(text)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(f"rollout server {self.url}: {path} answers what is no JSON object: {text[:80]!r}")
        return answer

    def _late(self, path: str) -> UserError:
        return UserError(
            f"rollout server {self.url}: no answer to {path} within {self.timeout:g} s; raise rl.engine.timeout, or "
            "lower rl.max_response_tokens"
        )


class _Unreachable(Exception):
    """The server gave no answer of its own; the message goes behind its name."""


def _message(body: bytes) -> str:
    """The first line of what an error answer says."""
    text = body.decode("utf-8", "replace")
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        told = json.loads(text)
        inner = told.get("error", told.get("detail", text))
        text = str(inner["message"] if isinstance(inner, dict) else inner)
    return (next((line.strip() for line in text.splitlines() if line.strip()), "") or "nothing")[:300]
