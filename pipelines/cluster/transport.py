"""How requests of the generated client travel: a time limit each, reads tried again, anything else sent once.

Left alone, `kfp_server_api` waits for ever, follows redirects with the body of a POST, and takes a log-in page for an
object without fields. urllib3 by default sends a POST a second time after some failures of a connection (those that it
counts as "other", such as a TLS error while the answer is read); nothing here is sent twice that is not a read.
"""

from __future__ import annotations

import copy
from typing import Any

import urllib3
from kfp_server_api import ApiException, Configuration
from kfp_server_api.rest import RESTClientObject

from pipelines.cluster import answers, errors

CONNECT_SECONDS = 5.0
BACKOFF_SECONDS = 0.5  # urllib3's factor: tries after 0, 1, 2, 4 s
_PASSING = (429, 500, 502, 503, 504)

ONCE = urllib3.Retry(total=False)  # any failure is raised as it is, a redirect is the answer


class _Retry(urllib3.Retry):
    """Takes a Retry-After that does not read for none."""

    def get_retry_after(self, response: urllib3.BaseHTTPResponse) -> float | None:
        try:
            return super().get_retry_after(response)
        except urllib3.exceptions.InvalidHeader:
            return None


def reads() -> urllib3.Retry:
    """Retries of a request that changes nothing; never of a redirect."""
    return _Retry(
        total=4,
        connect=2,
        read=3,
        other=0,
        redirect=0,
        allowed_methods=("GET",),
        status_forcelist=_PASSING,
        backoff_factor=BACKOFF_SECONDS,
        raise_on_redirect=False,
        raise_on_status=False,
        retry_after_max=30,
    )


class Transport(RESTClientObject):
    """The generated client's `rest_client`, with our limits, retries, answers and errors.

    Args:
        configuration: the client's: TLS and proxy settings.
        seconds: how long the server may send nothing.
    """

    def __init__(self, configuration: Configuration, *, seconds: float) -> None:
        super().__init__(_with_retries(configuration, ONCE))
        self._reading = RESTClientObject(_with_retries(configuration, reads()))
        self._seconds = seconds

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Any = None,
        body: Any = None,
        post_params: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> Any:
        """Send a request; `errors.ApiError` where it was refused, or no valid answer came."""
        # A stream is not begun a second time: what was read of it has been shown.
        send = self._reading.request if method.upper() == "GET" and _preload_content else super().request
        try:
            response = send(
                method,
                url,
                query_params=query_params,
                headers=headers,
                body=body,
                post_params=post_params,
                _preload_content=_preload_content,
                _request_timeout=_request_timeout or (CONNECT_SECONDS, self._seconds),
            )
            if not _preload_content and response.headers.get("Content-Type", "").startswith("text/html"):
                raise errors.no_json(method, url, response.status, body=response.read(10_000), reason="")
        except ApiException as error:
            if isinstance(error.__context__, urllib3.exceptions.SSLError):  # which the generated client makes text of
                raise errors.unreachable(method, url, error.__context__, seconds=self._seconds) from None
            raise errors.refused(
                method,
                url,
                error.status,
                body=error.body or b"",
                headers=error.headers or {},
                reason=error.reason or "",
            ) from None
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise errors.unreachable(method, url, error, seconds=self._seconds) from None
        except ValueError:  # of http.client, whose message holds the header
            raise errors.unsendable(url) from None
        if not _preload_content:
            return response
        return answers.answer(method, url, response.status, response.data, reason=response.reason)


def _with_retries(configuration: Configuration, retries: urllib3.Retry) -> Configuration:
    mine = copy.copy(configuration)
    mine.retries = retries
    return mine
