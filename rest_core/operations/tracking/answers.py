"""Of which kind a failure of MLflow, or on the way to it, is.

*Away*: no connection, a time-out, HTTP 5xx, 401, 403, 408 or 429: later it may succeed. *Refused*: any other answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rest_core.credentials import redact
from rest_core.errors import UserError, one_line
from rest_core.operations.tracking import store


class Away(Exception):
    """The server, or the store behind it, does not take records at the moment."""


class Refused(Exception):
    """The server does not accept a record, and would not later."""


def explain(error: BaseException) -> Away | Refused:
    """Which kind of failure an exception from MLflow, requests, boto3 or the file system is."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, UserError):
        return Refused(one_line(error))
    status: int | None
    if isinstance(error, MlflowException):
        status = int(error.get_http_status_code())  # type: ignore[no-untyped-call]
    else:
        status = getattr(getattr(error, "response", None), "status_code", None)  # requests.HTTPError
    if status is None:
        status = 503 if isinstance(error, OSError) or type(error).__module__.startswith("botocore") else 400
    return (Away if status >= 500 or status in (401, 403, 408, 429) else Refused)(store.reason(error))


@contextmanager
def away_told(uri: str) -> Iterator[None]:
    """Around requests that somebody waits for: an MLflow that is away meanwhile is a `UserError`, in one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # every client library has failures of its own: `explain` sorts them
        if not isinstance(answer := explain(error), Away):
            raise
        raise UserError(f"MLflow at {redact(uri)} does not take requests any more ({answer}); try again") from error
