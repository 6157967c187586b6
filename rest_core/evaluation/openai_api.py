"""Requests to an OpenAI-compatible endpoint: retries with back-off, a deadline, and an API key that appears nowhere."""

from __future__ import annotations

import email.utils
import json
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import requests
from requests.auth import AuthBase

from rest_core.api_keys import OPENAI_VARIABLE, VLLM_VARIABLE, api_key, without_key
from rest_core.config import EndpointConfig
from rest_core.errors import UserError, one_line

_BUSY = {408, 409, 425, 429}  # and 5xx
_MOST_BYTES = 1 << 24  # of an answer
_MOST_FAILURES = 5  # in a row, to connect or to get a whole answer
_LONGEST_PAUSE = 60.0
FIRST_PAUSE = 1.0  # seconds; doubled with each attempt


class TooLong(Exception):
    """The endpoint refuses a prompt that is longer than the model's context."""


class _NoAnswer(Exception):
    """An attempt that may succeed when it is made again. `wait`: seconds that the server asks for."""

    def __init__(self, problem: str, *, busy: bool = False, wait: float | None = None) -> None:
        super().__init__(problem)
        self.busy, self.wait = busy, wait


class _Bearer(AuthBase):
    """The key as a header. An auth object keeps requests from putting a password of ~/.netrc there."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Endpoint:
    """POSTs JSON to `URL/chat/completions`. One object serves one thread.

    Raises:
        UserError: the key in OPENAI_API_KEY, or else in VLLM_API_KEY, is none that can be sent.
    """

    def __init__(self, url: str, config: EndpointConfig) -> None:
        self._url, self._config = f"{url.rstrip('/')}/chat/completions", config
        self._key = api_key(OPENAI_VARIABLE, VLLM_VARIABLE)
        self._session = requests.Session()
        self._session.auth = _Bearer(self._key)

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The chat completion that answers a request, with at least one choice.

        Raises:
            TooLong: the prompt does not fit into the model's context.
            UserError: the endpoint refuses the request, or there is no answer before the deadline.
        """
        end = time.monotonic() + self._config.deadline_seconds
        failures = attempt = 0
        while True:
            try:
                return self._attempt(body, end)
            except _NoAnswer as problem:
                failures = 0 if problem.busy else failures + 1
                pause = min(_LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
                pause = problem.wait or pause
                if failures >= _MOST_FAILURES:
                    raise self._failed(f"{problem}, {failures} times") from None
                if time.monotonic() + pause > end:
                    limit = f"evaluation.endpoint.deadline_seconds={self._config.deadline_seconds:g}"
                    raise self._failed(f"{problem}, and the next attempt would be past {limit}") from None
                attempt += 1
                time.sleep(pause)

    def _attempt(self, body: Mapping[str, Any], end: float) -> dict[str, Any]:
        until = min(end, time.monotonic() + self._config.timeout_seconds)
        seconds = max(0.1, until - time.monotonic())
        try:
            # No redirect is followed: the key is for this address.
            with self._session.post(
                self._url, json=body, timeout=(min(10.0, seconds), seconds), stream=True, allow_redirects=False
            ) as response:
                content = self._content(response, until)
        except requests.Timeout:
            raise _NoAnswer(f"no answer within {seconds:.0f} s") from None
        except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
            raise _NoAnswer(f"cannot be reached or broke off ({_cause(error)})") from None
        except (requests.RequestException, UnicodeError) as error:  # an address or a proxy that is none
            raise self._failed(f"the request cannot be sent: {one_line(error, longest=200)}") from None
        if response.status_code == 200:
            return _completion(content)
        raise self._refusal(response.status_code, response.headers, content)

    def _content(self, response: requests.Response, until: float) -> bytes:
        """The body, without the key where a server repeats it."""
        parts, size = [], 0
        for part in response.iter_content(1 << 16):
            parts.append(part)
            size += len(part)
            if size > _MOST_BYTES:
                raise self._failed(f"the answer is larger than {_MOST_BYTES} bytes")
            if time.monotonic() > until:
                raise requests.Timeout
        return without_key(b"".join(parts), self._key)

    def _refusal(self, status: int, headers: Mapping[str, str], content: bytes) -> Exception:
        message, code = _problem(content)
        said = f"answers {status}: {message}"
        if (status in _BUSY or status >= 500) and code != "insufficient_quota":
            return _NoAnswer(said, busy=True, wait=_wait(headers.get("Retry-After")))
        if status in (400, 413) and (code == "context_length_exceeded" or "context length" in message):
            return TooLong(message)
        remedies = {
            401: f"set {OPENAI_VARIABLE}, or for a vLLM server {VLLM_VARIABLE}, to a key of this endpoint",
            403: f"set {OPENAI_VARIABLE} to a key that may use this model",
            404: "name a model that it has, and the URL up to and with /v1",
        }
        remedy = "give the address that it leads to" if 300 <= status < 400 else remedies.get(status)
        return self._failed(f"{said}; {remedy}" if remedy else said)

    def _failed(self, what: str) -> UserError:
        return UserError(f"{self._url}: {what}")


def _completion(content: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        answer = json.loads(content)
        choices = answer.get("choices") if isinstance(answer, dict) else None
        first = choices[0] if isinstance(choices, list) and choices else None
        if isinstance(first, dict) and isinstance(first.get("message"), dict):
            return dict(answer)
    raise _NoAnswer(f"the answer is no chat completion: {one_line(content[:200], longest=100)}")


def _problem(content: bytes) -> tuple[str, str | None]:
    """What an error answer says, in one line, and its code where it has one."""
    text, code = one_line(content[:2000], longest=300) or "nothing", None
    with suppress(ValueError, RecursionError, AttributeError):
        error = json.loads(content).get("error")
        if isinstance(error, dict) and isinstance(error.get("message"), str):
            text = one_line(error["message"], longest=300)
            code = error["code"] if isinstance(error.get("code"), str) else None
    return text, code


def _wait(value: str | None) -> float | None:
    """The seconds of a Retry-After header: a number, or a date."""
    if value is None:
        return None
    with suppress(ValueError):
        seconds = float(value)
        return seconds if 0 <= seconds < float("inf") else None
    with suppress(ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _cause(error: BaseException) -> str:
    """The innermost reason of a failed connection."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return one_line(error, longest=120)
