"""JSON over HTTP to a vLLM server, with errors that say what to do."""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from typing import Any

import urllib3
from urllib3.exceptions import MaxRetryError, ProtocolError, ReadTimeoutError

from rest_core.api_keys import VLLM_VARIABLE, api_key, without_key
from rest_core.errors import UserError
from rest_core.rollout.vllm_sampling import VERSION

log = logging.getLogger(__name__)

CONNECTIONS = 256  # requests that are at the server together
_BUSY = {502, 503, 504}  # answers of a proxy before the server, or of a server that starts


class _Retry(urllib3.Retry):
    """Tries again what gave no answer; an answer that takes too long is not asked for twice."""

    def increment(
        self,
        method: str | None = None,
        url: str | None = None,
        response: Any = None,
        error: Exception | None = None,
        _pool: Any = None,
        _stacktrace: Any = None,
    ) -> _Retry:
        if isinstance(error, ReadTimeoutError):
            raise error
        return super().increment(method, url, response, error, _pool, _stacktrace)


AGAIN = _Retry(3, backoff_factor=1.0, status_forcelist=_BUSY, allowed_methods=None, raise_on_status=False)
ONCE = AGAIN.new(total=0)


class Server:
    """JSON over HTTP to one vLLM server. A proxy is never asked: the server belongs to the trainer or evaluation.

    What fails is a `UserError` that says what to do. A server that cannot be reached is tried again: each request asks
    for the same thing, however often it is made. Requests carry the key in VLLM_API_KEY, where it is set.
    """

    def __init__(self, url: str, timeout: float, setting: str = "rl.engine") -> None:
        self.url, self.setting = url.rstrip("/"), setting
        self.timeout = timeout
        self._key = api_key(VLLM_VARIABLE)
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._pool = urllib3.PoolManager(maxsize=CONNECTIONS, timeout=timeout, headers=headers)

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """POST `body` to `path`, GET without one; returns the JSON object that came back, {} for an empty answer."""
        try:
            return self._request(path, body, AGAIN)
        except _Unreachable as error:
            raise UserError(
                f"rollout server {self.url}: {error} ({path}); look at its log and start it again "
                "(`rest serve-rollouts`), then run the same command again; a training resumes from its last checkpoint"
            ) from None

    def wait(self) -> None:
        """Return once the server answers; it may still be loading when a training starts.

        Raises:
            UserError: not within the time limit, or it is not a server as `rest serve-rollouts` starts it.
        """
        end, version = time.monotonic() + self.timeout, None
        log.info("waiting for the rollout server %s", self.url)
        while version is None:
            try:
                version = str(self._request("/version", None, ONCE).get("version"))
            except _Unreachable as error:
                if time.monotonic() > end:
                    raise UserError(
                        f"rollout server {self.url}: {error}, for {self.timeout:g} s; start it with "
                        f"`rest serve-rollouts`, and set {self.setting}.url to where it listens"
                    ) from None
                time.sleep(min(2.0, self.timeout))
        log.info("rollout server %s runs vLLM %s", self.url, version)
        try:
            self._request("/weight_info", None, ONCE)
        except (UserError, _Unreachable) as error:
            raise UserError(
                f"rollout server {self.url}: vLLM {version} does not take weights ({error}); start vLLM {VERSION} or "
                "later with `rest serve-rollouts`"
            ) from None

    def _request(self, path: str, body: dict[str, Any] | None, retries: urllib3.Retry) -> dict[str, Any]:
        method, where = "GET" if body is None else "POST", f"rollout server {self.url}"
        try:
            response = self._pool.request(method, f"{self.url}{path}", json=body, retries=retries)
        except ReadTimeoutError:
            raise UserError(
                f"{where}: no answer to {path} within {self.timeout:g} s; raise {self.setting}.timeout, or lower "
                "max_response_tokens"
            ) from None
        except MaxRetryError as error:
            kind = "broke off its answer" if isinstance(error.reason, ProtocolError) else "cannot be reached"
            raise _Unreachable(f"{kind}: {error.reason and error.reason.args[0]}") from None
        if response.status in _BUSY:
            raise _Unreachable(f"answers {response.status}")
        if response.status >= 300:
            said = f"{path} answers {response.status}: {_message(without_key(response.data, self._key))}"
            remedy = f"; set {VLLM_VARIABLE} to the server's key" if response.status == 401 else ""
            raise UserError(f"{where}: {said}{remedy}")
        if not response.data:
            return {}
        answer = None
        with suppress(ValueError):
            answer = response.json()
        if not isinstance(answer, dict):
            raise UserError(f"{where}: {path} answers what is no JSON object: {response.data[:80]!r}")
        return answer


class _Unreachable(Exception):
    """The server gave no answer of its own; the message goes behind its name."""


def _message(body: bytes) -> str:
    """The first line of what an error answer says."""
    text = body.decode("utf-8", "replace")
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        answer = json.loads(text)
        inner = answer.get("error", answer.get("detail", text))
        text = str(inner["message"] if isinstance(inner, dict) else inner)
    return (next((line.strip() for line in text.splitlines() if line.strip()), "") or "nothing")[:300]
