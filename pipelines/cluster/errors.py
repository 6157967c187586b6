"""What can go wrong between here and the API, each told in one line with what to do.

The API's own error bodies are `google.rpc.Status` (`{"code", "message", "details"}`, by older versions with "error"
besides); what stands in front of it (an ingress, a log-in) answers in HTML.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions

from rest_core.errors import UserError

_LONGEST_DETAIL = 300  # characters of the API's own words


class ApiError(UserError):
    """A request to the API that failed.

    Attributes:
        status: the HTTP status; None where no answer came.
        unclear: it is not known whether the request was carried out. False for a refusal, and where it was never sent.
        said: the API's own words, without advice; the message where it said nothing.
    """

    def __init__(
        self, message: str, *, status: int | None = None, unclear: bool = False, said: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.said = said or message
        self.unclear = unclear

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later without anybody's doing."""
        return self.status is None or self.status in (408, 429) or self.status >= 500


def refused(method: str, url: str, status: int, *, body: bytes, headers: Mapping[str, str], reason: str) -> ApiError:
    """The error for an answer with a status other than 2xx."""
    where = _address(url)
    detail = _detail(body)
    said = f"{status}: {detail or _text(body, headers) or reason}"
    if 300 <= status < 400:
        target = headers.get("Location", "an address that it does not give")
        message = (
            f"{where} sends requests on to {target}: a log-in stands before the API, or it has another address; give "
            "that one as --host, or a token by --token-file"
        )
    elif status == 401:
        message = (
            f"{where} does not accept who you are ({said}): give a token that is still valid by --token-file, or by "
            "--token (KF_PIPELINES_TOKEN)"
        )
    elif status == 403:
        message = (
            f"{where} forbids this ({said}): the account needs the role for it in this namespace, or --namespace names "
            "the wrong one"
        )
    elif status == 404 and not detail:
        message = (
            f"{where} has no KFP API ({status} for {urlsplit(url).path}): give --host without a page's path, and KFP's "
            "version must be 2.0 or later"
        )
    elif status == 404:
        message = f"{where} does not have it ({said}): `rest status` and `rest schedule list` show what there is"
    elif status == 409:
        message = f"{where} has it already ({said}): choose another name"
    elif status == 413:
        message = f"{where} takes no request of this size ({said}): raise the limit of the proxy before the API"
    elif status == 429 or status >= 500:
        message = (
            f"{where} cannot answer now ({said}): try again; if it stays, look at its pods (`kubectl get pods -n "
            "kubeflow -l app=ml-pipeline`)"
        )
    else:
        message = f"{where} refused the request ({said})"
    return ApiError(message, status=status, unclear=method != "GET" and (status == 408 or status >= 500), said=said)


def no_json(method: str, url: str, status: int, *, body: bytes, reason: str) -> ApiError:
    """The error for an answer with status 2xx that is not what the API sends."""
    title = re.search(rb"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
    page = f" ({_one_line(title[1])!r})" if title else ""
    what = f"a web page{page}" if title or b"<html" in body[:1000].lower() else f"no valid JSON ({reason})"
    return ApiError(
        f"{_address(url)} answers {urlsplit(url).path} with {what}: a log-in stands before the API (give a token by "
        "--token-file), or this is not its address",
        status=status,
        unclear=method != "GET",
    )


def unreachable(method: str, url: str, error: Exception, *, seconds: float) -> ApiError:
    """The error where no whole answer came."""
    cause: Exception = error
    while isinstance(cause, exceptions.MaxRetryError) and cause.reason is not None:
        cause = cause.reason
    where = _address(url)
    unclear = method != "GET"
    if isinstance(cause, exceptions.LocationValueError):
        message, unclear = f"{url}: is no address: give --host as https://HOST[:PORT]", False
    elif isinstance(cause, exceptions.NameResolutionError):
        message, unclear = f"{where}: this name is not known here: check --host", False
    elif isinstance(cause, exceptions.ConnectTimeoutError):  # a refused connection is one too
        message, unclear = (
            f"{where} cannot be reached ({_reason(cause)}): check --host; a port-forward (`kubectl port-forward -n "
            "kubeflow svc/ml-pipeline 8888:8888`) must be running for 127.0.0.1",
            False,
        )
    elif isinstance(cause, exceptions.SSLError | ssl.SSLError):
        unclear = unclear and "CERTIFICATE_VERIFY_FAILED" not in str(cause)
        message = (
            f"{where}: no TLS connection ({_one_line(str(cause))}): give the authority of its certificate by --ca-cert"
        )
    elif isinstance(cause, exceptions.ReadTimeoutError):
        message = f"{where} did not answer within {seconds:g} s: try again, or wait longer by --timeout"
    elif isinstance(cause, exceptions.ProxyError):
        message = f"{where} cannot be reached through the proxy ({_one_line(str(cause))}): check HTTPS_PROXY"
    else:  # closed before or within the answer
        message = f"{where} closed the connection before its answer was whole ({_reason(cause)}): try again"
    return ApiError(message, unclear=unclear)


def _address(url: str) -> str:
    """Scheme, host and port of `url`, without credentials."""
    try:
        parts = urllib3.util.parse_url(url)
    except exceptions.LocationValueError:
        return url
    return f"{parts.scheme}://{parts.netloc}"


def _detail(body: bytes) -> str:
    """The API's own words in an error body; empty where it is not the API that answers."""
    try:
        said = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(said, dict):
        return ""
    text = said.get("message") or said.get("error_message") or said.get("error") or ""
    return _one_line(str(text))


def _text(body: bytes, headers: Mapping[str, str]) -> str:
    """What a proxy says in plain text, such as "RBAC: access denied"."""
    plain = headers.get("Content-Type", "").startswith("text/plain")
    return _one_line(body) if plain else ""


def _reason(cause: Exception) -> str:
    text = _one_line(str(cause))
    return text.rpartition(": ")[2] if isinstance(cause, exceptions.ConnectTimeoutError) else text


def _one_line(text: str | bytes) -> str:
    if isinstance(text, bytes):
        text = text.decode("utf-8", errors="replace")
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST_DETAIL else f"{line[: _LONGEST_DETAIL - 1]}…"
