"""Requests to the API that failed, in one line that says what to do."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import kfp_server_api
import urllib3
from urllib3 import exceptions

from rest_core.errors import UserError

_ADVICE = {
    401: "give a valid token by --token-file, or by --token (KF_PIPELINES_TOKEN)",
    403: "the account needs the role for it in this namespace, or --namespace names the wrong one",
    404: "`rest status` and `rest schedule list` show what there is; give --host without a page's path",
    407: "the proxy wants a user and a password, in the addresses of HTTPS_PROXY and HTTP_PROXY",
    409: "choose another name",
    413: "raise the size limit of the proxy in front of the API",
}
_SERVER_FAILED = "try again; if it lasts, look at its pods (`kubectl get pods -n kubeflow -l app=ml-pipeline`)"
_LOG_IN = "a log-in page stands in front of the API (give a token by --token-file), or --host is not its address"
IN_DOUBT = "it is not known whether it was carried out: see `rest status` or `rest schedule list` before you repeat it"


class ApiError(UserError):
    """A request to the API that failed.

    Attributes:
        fact: what happened; the message ends with advice.
        status: the HTTP status; None where no answer came.
        in_doubt: the request changes something, and may have been carried out all the same.
    """

    def __init__(self, fact: str, advice: str, *, status: int | None = None, in_doubt: bool = False) -> None:
        advice = IN_DOUBT if in_doubt else advice
        super().__init__(f"{fact}: {advice}" if advice else fact)
        self.fact = fact
        self.status = status
        self.in_doubt = in_doubt

    @property
    def temporary(self) -> bool:
        """Whether the same request may succeed later: it was not refused (3xx, 4xx)."""
        return self.status is None or not 300 <= self.status < 500 or self.status in (408, 429)


def refused(method: str, url: str, error: kfp_server_api.ApiException) -> ApiError:
    """The error for an answer with a status other than 2xx."""
    status = error.status
    fact = f"{address(url)} answers {urlsplit(url).path} with {status}: {message(error.body or '') or error.reason}"
    advice = _SERVER_FAILED if status == 429 or status >= 500 else _ADVICE.get(status, "")
    if 300 <= status < 400:
        fact, advice = f"{fact}, {one_line((error.headers or {}).get('Location'))}", _LOG_IN
    return ApiError(fact, advice, status=status, in_doubt=method != "GET" and (status == 408 or status >= 500))


def no_json(method: str, url: str, status: int, body: bytes) -> ApiError:
    """The error for a success that is not a JSON object, such as the page of a log-in."""
    text = one_line(body[:200].decode("utf-8", errors="replace"))
    fact = f"{address(url)} answers {urlsplit(url).path} with {text!r}, which is no JSON object"
    return ApiError(fact, _LOG_IN, status=status, in_doubt=method != "GET")


def unanswered(method: str, url: str, error: exceptions.HTTPError, *, seconds: float) -> ApiError:
    """The error where no complete answer came within `seconds`."""
    cause = _cause(error)
    fact, advice, sent = f"{address(url)} gave no complete answer ({reason(cause)})", "try again", True
    if isinstance(cause, exceptions.ConnectTimeoutError):  # so is a refused connection, and an unknown host
        fact, sent = f"{address(url)} cannot be reached ({reason(cause)})", False
        forward = "kubectl port-forward -n kubeflow svc/ml-pipeline 8888:8888"
        advice = f"check --host; for 127.0.0.1 a port-forward must be running (`{forward}`)"
    elif isinstance(cause, exceptions.LocationValueError):
        fact, advice, sent = f"{address(url)} is not an address", "give --host as https://HOST[:PORT]", False
    elif (problem := connection_problem(error)) is not None:
        fact, advice, sent = f"{address(url)} {problem[0]}", problem[1], isinstance(cause, exceptions.SSLError)
    elif isinstance(cause, exceptions.ReadTimeoutError):
        fact, advice = f"{address(url)} sent nothing for {seconds:g} s", "try again, or wait longer by --timeout"
    return ApiError(fact, advice, in_doubt=sent and method != "GET")


def connection_problem(error: Exception) -> tuple[str, str] | None:
    """What a failed connection by TLS or through a proxy failed at, and what to do; None for any other error."""
    cause = _cause(error)
    if isinstance(cause, exceptions.ProxyError):
        inner = cause.original_error
        return (
            f"is not reached through the proxy ({reason(inner)})",
            "check HTTPS_PROXY and HTTP_PROXY (http://HOST:PORT, with user and password where it wants them), or set "
            "this host in NO_PROXY",
        )
    if isinstance(cause, exceptions.SSLError):
        return (
            f"allows no TLS connection ({reason(cause)})",
            "give its certificate's authority by --ca-cert, or by REQUESTS_CA_BUNDLE; if the server has no TLS, give "
            "--host with http://",
        )
    return None


def _cause(error: Exception) -> Exception:
    return error.reason if isinstance(error, exceptions.MaxRetryError) and error.reason else error


def message(body: str | bytes) -> str:
    """The API's message in the body of an error, or a proxy's plain text; empty for a web page."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        text = body if isinstance(body, str) else body.decode("utf-8", errors="replace")
        return "" if text.lstrip().startswith("<") else one_line(text)
    while isinstance(content, dict):
        content = content.get("message") or content.get("error_message") or content.get("error")
    return one_line(content or "")


def reason(error: BaseException) -> str:
    """The message of a urllib3 error, or of the error that it wraps."""
    return one_line(error.args[-1] if error.args else error)


def one_line(text: object) -> str:
    """`text` as one line of at most 300 printable characters."""
    return " ".join(printable(str(text)).split())[:300]


def printable(text: str) -> str:
    """`text` with a blank for each character that controls a terminal, such as a line end or an escape."""
    return "".join(character if character.isprintable() else " " for character in text)


def address(url: str) -> str:
    """Scheme, host and port of `url`, without credentials."""
    try:
        parts = urllib3.util.parse_url(url)
    except exceptions.LocationValueError:
        return one_line(url.rpartition("@")[2])
    return f"{parts.scheme}://{parts.netloc}"
