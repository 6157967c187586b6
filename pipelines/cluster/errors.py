"""What can go wrong between here and the API, each told in one line with what to do.

The API's own error bodies are `google.rpc.Status` (`{"code", "message", "details"}`, by older versions with "error"
besides); what stands in front of it (an ingress, a log-in) answers in HTML.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

import urllib3
from urllib3 import exceptions

from pipelines.cluster.words import one_line
from rest_core.errors import UserError


class ApiError(UserError):
    """A request to the API that failed.

    Attributes:
        fact: what happened, without the advice that the message ends with.
        status: the HTTP status; None where no answer came.
        unclear: it is not known whether the request was carried out. False for a refusal, and where it was never sent.
        said: the API's own words; `fact` where it said nothing.
    """

    def __init__(
        self,
        fact: str,
        advice: str,
        *,
        status: int | None = None,
        unclear: bool = False,
        said: str | None = None,
    ) -> None:
        super().__init__(f"{fact}: {advice}" if advice else fact)
        self.fact = fact
        self.status = status
        self.said = said or fact
        self.unclear = unclear

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later without anybody's doing."""
        return self.status is None or self.status in (408, 429) or self.status >= 500

    @property
    def foreign(self) -> bool:
        """Whether a success was answered that is none of the API's: a page, half an object, another object."""
        return self.status is not None and 200 <= self.status < 300


def refused(method: str, url: str, status: int, *, body: bytes, headers: Mapping[str, str], reason: str) -> ApiError:
    """The error for an answer with a status other than 2xx."""
    where = address(url)
    detail = _detail(body)
    said = f"{status}: {detail or _text(body, headers) or reason}"
    if 300 <= status < 400:
        target = one_line(headers.get("Location", "an address that it does not give"))
        fact = f"{where} sends requests on to {target}"
        advice = (
            "a log-in stands before the API, or it has another address; give that one as --host, or a token by "
            "--token-file"
        )
    elif status == 401:
        fact = f"{where} does not accept who you are ({said})"
        advice = "give a token that is still valid by --token-file, or by --token (KF_PIPELINES_TOKEN)"
    elif status == 403:
        fact = f"{where} forbids this ({said})"
        advice = "the account needs the role for it in this namespace, or --namespace names the wrong one"
    elif status == 404 and not detail:
        fact = f"{where} has no KFP API ({status} for {urlsplit(url).path})"
        advice = "give --host without a page's path, and KFP's version must be 2.0 or later"
    elif status == 404:
        fact = f"{where} does not have it ({said})"
        advice = "`rest status` and `rest schedule list` show what there is"
    elif status == 409:
        fact, advice = f"{where} has it already ({said})", "choose another name"
    elif status == 413:
        fact, advice = f"{where} takes no request of this size ({said})", "raise the limit of the proxy before the API"
    elif status == 429 or status >= 500:
        fact = f"{where} cannot answer now ({said})"
        advice = "try again; if it stays, look at its pods (`kubectl get pods -n kubeflow -l app=ml-pipeline`)"
    else:
        fact, advice = f"{where} refused the request ({said})", ""  # KFP's words say what does not fit
    return ApiError(
        fact, advice, status=status, unclear=method != "GET" and (status == 408 or status >= 500), said=said
    )


def no_json(method: str, url: str, status: int, *, body: bytes, reason: str) -> ApiError:
    """The error for an answer with status 2xx that is no JSON object."""
    title = re.search(rb"<title[^>]*>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
    page = f" ({one_line(title[1])!r})" if title else ""
    what = f"a web page{page}" if title or b"<html" in body[:1000].lower() else f"no valid JSON ({one_line(reason)})"
    return ApiError(
        f"{address(url)} answers {urlsplit(url).path} with {what}",
        "a log-in stands before the API (give a token by --token-file), or this is not its address",
        status=status,
        unclear=method != "GET",
    )


def unreadable(method: str, url: str, status: int, *, reason: str) -> ApiError:
    """The error for an answer with status 2xx that is another object than was asked for."""
    return ApiError(
        f"{address(url)} answers {urlsplit(url).path} with what is not KFP's ({one_line(reason)})",
        "check --host; KFP's version must be 2.0 or later",
        status=status,
        unclear=method != "GET",
    )


def unreachable(method: str, url: str, error: Exception, *, seconds: float) -> ApiError:
    """The error where no whole answer came."""
    cause: Exception = error
    while isinstance(cause, exceptions.MaxRetryError) and cause.reason is not None:
        cause = cause.reason
    where, why = address(url), reason(cause)
    unclear = method != "GET"
    advice = "try again"
    if isinstance(cause, exceptions.LocationValueError):
        fact, advice, unclear = f"{where} is no address", "give --host as https://HOST[:PORT]", False
    elif isinstance(cause, exceptions.NameResolutionError):
        fact, advice, unclear = f"{where}: this name is not known here", "check --host", False
    elif isinstance(cause, exceptions.ConnectTimeoutError):  # a refused connection is one too
        fact, unclear = f"{where} cannot be reached ({why})", False
        advice = (
            "check --host; a port-forward (`kubectl port-forward -n kubeflow svc/ml-pipeline 8888:8888`) must be "
            "running for 127.0.0.1"
        )
    elif isinstance(cause, exceptions.SSLError):
        unclear = unclear and "CERTIFICATE_VERIFY_FAILED" not in why
        fact = f"{where}: no TLS connection ({why})"
        # What a server without TLS sends looks like a version that nobody knows.
        plain = "WRONG_VERSION_NUMBER" in why
        advice = "give --host with http://" if plain else "give the authority of its certificate by --ca-cert"
    elif isinstance(cause, exceptions.ReadTimeoutError):
        fact, advice = f"{where} sent nothing for {seconds:g} s", "try again, or wait longer by --timeout"
    elif isinstance(cause, exceptions.ProxyError):
        fact, advice = f"{where} cannot be reached through the proxy ({why})", "check HTTPS_PROXY"
    elif isinstance(cause, exceptions.DecodeError):
        fact = f"{where} sent an answer that cannot be decoded ({why})"
    else:  # closed before or within the answer
        fact = f"{where} closed the connection before its answer was whole ({why})"
    return ApiError(fact, advice, unclear=unclear)


def unsendable(url: str) -> ApiError:
    """The error where a header is none that HTTP allows; which value it has is not told, since it may be a secret."""
    return ApiError(
        f"the request to {address(url)} cannot be sent, because a header has a character that HTTP does not allow",
        "check the token, and what kfp's context file or the kubeconfig gives",
    )


def address(url: str) -> str:
    """Scheme, host and port of `url`, without credentials."""
    try:
        parts = urllib3.util.parse_url(url)
    except exceptions.LocationValueError:
        return url.rpartition("@")[2]
    return f"{parts.scheme}://{parts.netloc}"


def reason(error: BaseException) -> str:
    """What a library's error comes from, in the words of the innermost one and without its Python form."""
    if isinstance(error, http.client.IncompleteRead):
        came = error.partial if isinstance(error.partial, int) else len(error.partial)
        return f"{came} bytes came"
    inner = next((part for part in error.args if isinstance(part, BaseException)), None) or error.__cause__
    if inner is not None:
        return reason(inner)
    return one_line(getattr(error, "strerror", None) or error)


def _detail(body: bytes) -> str:
    """The API's own words in an error body; empty where it is not the API that answers."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    while isinstance(said, dict):
        said = said.get("message") or said.get("error_message") or said.get("error")
    return one_line(said) if isinstance(said, str) else ""


def _text(body: bytes, headers: Mapping[str, str]) -> str:
    """What a proxy says in plain text, such as "RBAC: access denied"."""
    plain = headers.get("Content-Type", "").startswith("text/plain")
    return one_line(body) if plain else ""
