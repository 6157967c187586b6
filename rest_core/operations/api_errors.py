"""Errors of the Kubernetes API, told in one line; Kubeflow Trainer's SDK hides what the API has said in a cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rest_core.errors import UserError


class NoAnswer(UserError):
    """The API could not be reached, or failed: it may answer another time."""


class Exists(UserError):
    """What was to be made is there already."""


@contextmanager
def told(what: str, *, missing: str = "check its name and namespace") -> Iterator[None]:
    """Turn the API's errors, and the SDK's which hide them, into one line."""
    try:
        yield
    except Exception as error:
        cause = api_error(error)
        if cause is None:
            if isinstance(error, (TimeoutError, OSError)) or _is_connection_error(error):
                raise NoAnswer(f"{what}: the Kubernetes API does not answer ({one_line(error)})") from error
            raise
        said = f"{cause.status} {cause.reason}"
        if cause.status in (401, 403):
            raise UserError(
                f"{what}: the cluster refuses it ({said}); give the pod's service account the Role of "
                "deploy/service-account.yaml"
            ) from error
        if cause.status == 404:
            raise UserError(f"{what}: is not there; {missing}") from error
        if cause.status == 409:
            raise Exists(f"{what}: is there already") from error
        if cause.status >= 500 or cause.status == 429:
            raise NoAnswer(f"{what}: the Kubernetes API failed ({said})") from error
        raise UserError(f"{what}: the cluster refuses it ({said}: {one_line(cause.body or '')})") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__


def api_error(error: BaseException) -> Any:
    """The API's own error behind the SDK's; None where there is none."""
    from kubernetes.client import ApiException

    return next((cause for cause in _causes(error) if isinstance(cause, ApiException)), None)


def _is_connection_error(error: BaseException) -> bool:
    from urllib3.exceptions import HTTPError

    return any(isinstance(cause, (HTTPError, TimeoutError, OSError)) for cause in _causes(error))


def one_line(error: object) -> str:
    return " ".join(str(error).split())[:300]
