"""A JSON POST to an address that is a secret: no message has more of it than its host."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from rest_core.errors import UserError

SECONDS = 10.0  # that it may take, all in all


def post(url: str, body: Mapping[str, Any], *, seconds: float = SECONDS) -> None:
    """Send `body` and wait until the server has accepted it.

    Raises:
        UserError: `url` is no address, or the server does not answer in time with a success; redirects are none.
    """
    host = _host(url)
    if host is None:
        raise UserError("the webhook's URL is no http:// or https:// address")
    said: list[str | None] = []
    # In a thread: the client's own time-outs are of single reads, of which a server can make any number.
    sender = threading.Thread(target=lambda: said.append(_failure(url, body, seconds)), daemon=True)
    sender.start()
    sender.join(seconds)
    failure = said[0] if said else f"no answer within {seconds:g} s"
    if failure is not None:
        raise UserError(f"{host} was not told ({failure})")


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _failure(url: str, body: Mapping[str, Any], seconds: float) -> str | None:
    import requests

    try:
        with requests.post(url, json=body, timeout=seconds, allow_redirects=False, stream=True) as answer:
            return None if 200 <= answer.status_code < 300 else f"HTTP {answer.status_code}"
    except (requests.RequestException, ValueError) as error:  # their texts have the URL
        return type(error).__name__
