"""Errors of the Kubernetes API in one line; Kubeflow Trainer's SDK hides the API's answer in a cause."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rest_core.errors import UserError, one_line


class NoAnswer(UserError):
    """The API could not be reached, or failed: it may answer another time."""


class Exists(UserError):
    """An object of this name is there already."""


class Missing(UserError):
    """There is no such object, or the cluster does not know its kind."""


@contextmanager
def api_errors(what: str, *, missing: str = "check its name and namespace") -> Iterator[None]:
    """Turn the API's errors, and the SDK's which hide them, into a `UserError`.

    Args:
        what: the object or the request, for the message.
        missing: what to do where the object is not there.
    """
    try:
        yield
    except Exception as error:
        if (problem := _explained(error, what, missing)) is None:
            raise
        raise problem from error


def _explained(error: Exception, what: str, missing: str) -> UserError | None:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    causes = list(_causes(error))
    answer = next((cause for cause in causes if isinstance(cause, ApiException)), None)
    if answer is None:
        if str(error).startswith("No TrainJob with name"):  # the SDK's backends without an API
            return Missing(f"{what}: is not there; {missing}")
        if any(isinstance(cause, (HTTPError, OSError)) for cause in causes):
            return NoAnswer(f"{what}: the Kubernetes API does not answer ({one_line(error)})")
        return None
    status, said = answer.status, f"{answer.status} {answer.reason}"
    if status in (401, 403):
        return UserError(
            f"{what}: the cluster refuses it ({said}); give the pod's service account the Role of "
            "deploy/base/service-account.yaml"
        )
    if status == 404:
        return Missing(f"{what}: is not there; {missing}")
    if status == 409:
        return Exists(f"{what}: is there already")
    if status >= 500 or status == 429:
        return NoAnswer(f"{what}: the Kubernetes API failed ({said})")
    return UserError(f"{what}: the cluster refuses it ({said}: {one_line(answer.body or '')})")


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
