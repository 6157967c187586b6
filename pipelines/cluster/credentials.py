"""What requests say about who sends them: a token, and the cookie and header of kfp's context file.

Each is checked before it is sent, because http.client shows the whole header where it cannot send it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import kfp
from kfp.client import token_credentials_base

from pipelines.cluster.words import one_line
from rest_core.errors import UserError

_COOKIE = "client_authentication_cookie"
_HEADER = "client_authentication_header_name"
_HEADER_VALUE = "client_authentication_header_value"
_FORMS = {
    "namespace": "[!-~]*",
    _COOKIE: "[ -~]*",
    _HEADER: r"[\w!#$%&'*+.^`|~-]+",  # of RFC 9110
    _HEADER_VALUE: "[ -~]*",
}


class TokenFile(token_credentials_base.TokenCredentialsBase):
    """A token that is read for every request.

    Args:
        path: of the file.
        source: how the file is named to the user.
    """

    def __init__(self, path: Path, *, source: str) -> None:
        self._path = path
        self._source = f"{source} {path}"

    def refresh_api_key_hook(self, config: Any) -> None:
        token = _read(self._path, self._source).strip()
        require_sendable(token, source=self._source)
        config.api_key["authorization"] = token


def of_the_pod() -> TokenFile | None:
    """The token that KFP accepts from pods; None where none is projected, as in a KFP that serves a single user."""
    path = Path(kfp.client.KF_PIPELINES_SA_TOKEN_PATH)
    return TokenFile(path, source="the pod's token") if path.is_file() else None


def require_sendable(token: str, *, source: str) -> None:
    """UserError where `token` is none that a header can have."""
    if not token:
        raise UserError(f"{source}: is empty")
    if not re.fullmatch("[!-~]+", token):
        raise UserError(f"{source}: is no token: it has a blank, a line end or a character that is not ASCII")


def check_context(path: Path) -> None:
    """UserError where kfp's context file is not as kfp.Client reads it, or names what no header can have."""
    if not path.exists():
        return
    try:
        values = json.loads(_read(path, str(path)))
    except (ValueError, RecursionError) as error:
        raise _no_context(path, f"no JSON: {one_line(error)}") from None
    if not isinstance(values, dict) or "namespace" not in values:
        raise _no_context(path, "no object with a namespace")
    if _HEADER in values and _HEADER_VALUE not in values:
        raise _no_context(path, f"{_HEADER} without {_HEADER_VALUE}")
    for key, form in _FORMS.items():
        value = values.get(key, "x")
        if not isinstance(value, str) or not re.fullmatch(form, value, re.ASCII):
            raise _no_context(path, f"{key} is no text that a request can have")


def _no_context(path: Path, reason: str) -> UserError:
    return UserError(f"{path}: is not kfp's context file ({reason}): mend or remove it")


def _read(path: Path, source: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
