"""Credentials in addresses: found by one rule, wherever an address is shown, recorded or handed on.

- User information is everything between `://` and the last `@`, whatever the password holds: `/`, `@`, `?`, blanks. It
  is there where the host's place has an `@`, or a colon without a port number behind it.
- `scheme://host:5000/a@b` may be either. A host with a dot, `localhost` and an address in brackets are hosts, so that
  their paths stay; anything else is taken for a user with the password `5000/a`.
- In a query the values of `password`, `token`, `key`, `signature` and the like are secrets.

All of it takes time in proportion to the text's length.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

HIDDEN = "***"
_WORD = re.compile(r"\S+")
# What stands before the path.
_PLACE = re.compile(r"(?P<host>\[[0-9a-fA-F:.%]*\]|[^:/?#\s]*)(?::(?P<port>[^/?#\s]*))?[^/?#\s]*")
_PORT = re.compile(r"\d{1,5}")
_HOST = re.compile(r"localhost|\[.*\]|[^.]*\..*", re.DOTALL)
# A bracket, quote or full stop that ends the value ends the sentence around it.
_SECRET_IN_QUERY = re.compile(
    r"([?&;#](?:[\w.-]*(?:password|passwd|passphrase|pwd|pass|token|secret|credential|signature|sig|key|auth|"
    r"odbc_connect)=))([^&\s]*[^&\s'\"`),;:.\]}>]|[^&\s]+)",
    re.IGNORECASE,
)
_SECRET_KEY = re.compile(
    r"passw|pwd|secret|credential|webhook|api_?key|access_?key|auth_?token|hf_?token|bearer", re.IGNORECASE
)


def redact(text: str) -> str:
    """`text` with the credentials of the addresses in it replaced by `***`."""
    parts, end = [], 0
    of_query = [found.span(2) for found in _SECRET_IN_QUERY.finditer(text)]
    for start, stop in _joined(sorted([*_user_information(text), *of_query])):
        parts += [text[end:start], HIDDEN]
        end = stop
    return "".join([*parts, text[end:]])


def redacted(value: Any, key: str = "") -> Any:
    """A copy of a JSON-like value in which addresses carry no credentials and values of secret keys are `***`."""
    if isinstance(value, dict):
        return {redact(str(name)): redacted(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(inner, key) for inner in value]
    if isinstance(value, str):
        return HIDDEN if value and _SECRET_KEY.search(key) else redact(value)
    return value


def has_credentials(text: str) -> bool:
    """Whether an address, or one of those in a text, holds credentials."""
    return next(_user_information(text), None) is not None or _SECRET_IN_QUERY.search(text) is not None


def without_credentials(address: str) -> str:
    """An address without them: it has no user information, and no secrets in its query."""
    if not has_credentials(address):
        return address
    of_user = [(start, at + 1) for start, at in _user_information(address)]
    of_query = [(found.start(1) + 1, found.end()) for found in _SECRET_IN_QUERY.finditer(address)]
    parts, end = [], 0
    for start, stop in _joined(sorted([*of_user, *of_query])):
        parts.append(address[end:start])
        end = stop
    left = "".join([*parts, address[end:]])
    return re.sub(r"([?&;])&+", r"\1", left).rstrip("?&;#")


def with_credentials(address: str, known: str | None = None) -> str:
    """An address as recorded, with those of `known` (or of MLFLOW_TRACKING_URI) where it is the same address."""
    known = known or os.environ.get("MLFLOW_TRACKING_URI", "")
    return known if without_credentials(known) == address else address


def _user_information(text: str) -> Iterator[tuple[int, int]]:
    """Where user information begins, and where the `@` behind it stands; one after another."""
    word_end = line_end = 0
    in_word = in_line = -1  # the last @ of either
    position = text.find("://")
    while position >= 0:
        start = position + 3
        if start > line_end:
            line_end = text.find("\n", start)
            line_end = len(text) if line_end < 0 else line_end
            in_line = text.rfind("@", start, line_end)
        if start >= word_end:
            found = _WORD.match(text, start, line_end)
            word_end = found.end() if found else start
            in_word = text.rfind("@", start, word_end)
        at = _at(text, start, in_word, in_line)
        if at >= start:
            yield start, at
        position = text.find("://", max(start, at))


def _at(text: str, start: int, in_word: int, in_line: int) -> int:
    """The `@` that ends the user information of the address whose `://` ends at `start`; -1 where it has none.

    Args:
        text: with the address.
        start: of what follows `://`.
        in_word: the last `@` before white space.
        in_line: the last `@` before the line's end.
    """
    place = _PLACE.match(text, start)
    assert place is not None
    host, port = place["host"], place["port"]
    if "@" not in place[0] and (port is None or (_PORT.fullmatch(port) and _HOST.fullmatch(host))):
        return -1
    if in_word >= start:
        # What follows is the host, unless its "port" is none: then the password goes on, with blanks.
        follows = _PLACE.match(text, in_word + 1)
        assert follows is not None
        return in_line if follows["port"] and not _PORT.fullmatch(follows["port"]) else in_word
    if not port or _PORT.fullmatch(port):
        return -1
    return in_line  # a password with blanks


def _joined(spans: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Sorted spans, those that overlap as one."""
    begun: tuple[int, int] | None = None
    for start, stop in spans:
        if begun is not None and start <= begun[1]:
            begun = begun[0], max(begun[1], stop)
        else:
            if begun is not None:
                yield begun
            begun = start, stop
    if begun is not None:
        yield begun
