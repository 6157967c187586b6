"""Answers of the API as the generated client takes them.

Left alone, that client trips over JSON of another shape, each in its own way, or takes it for an object without fields:
a run without an id would count as created.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import kfp_server_api

from pipelines.cluster import errors
from pipelines.cluster.words import printable

_IDS = {
    kfp_server_api.V2beta1Experiment: "experiment_id",
    kfp_server_api.V2beta1Pipeline: "pipeline_id",
    kfp_server_api.V2beta1PipelineVersion: "pipeline_version_id",
    kfp_server_api.V2beta1RecurringRun: "recurring_run_id",
    kfp_server_api.V2beta1Run: "run_id",
}
_LISTS = {
    kfp_server_api.V2beta1ListExperimentsResponse: "experiments",
    kfp_server_api.V2beta1ListPipelinesResponse: "pipelines",
    kfp_server_api.V2beta1ListPipelineVersionsResponse: "pipeline_versions",
    kfp_server_api.V2beta1ListRecurringRunsResponse: "recurring_runs",
    kfp_server_api.V2beta1ListRunsResponse: "runs",
}


@dataclass
class Answer:
    """A JSON object that was answered, with what the generated client asks of an answer.

    Attributes:
        method, url: of the request.
        status, reason: of the answer.
        data: the object as JSON, whatever encoding it came in.
    """

    method: str
    url: str
    status: int
    reason: str | None
    data: bytes | str

    def getheader(self, name: str, default: str | None = None) -> str | None:
        return "application/json" if name.lower() == "content-type" else default

    def getheaders(self) -> Mapping[str, str]:
        return {}


def answer(method: str, url: str, status: int, body: bytes, *, reason: str | None) -> Answer:
    """The answer `body`; `errors.ApiError` where it is no JSON object."""
    try:
        value = json.loads(body, parse_constant=_no_number)
        if not isinstance(value, dict):
            raise ValueError("no object")
        data = json.dumps(_printable(value)).encode()
    except (ValueError, RecursionError) as error:
        raise errors.no_json(method, url, status, body=body, reason=str(error)) from None
    return Answer(method, url, status, reason, data)


def checked(deserialize: Callable[[Answer, Any], Any]) -> Callable[[Answer, Any], Any]:
    """`deserialize` of the generated client, with `errors.ApiError` where the object is not what was asked for."""

    def read(response: Answer, response_type: Any) -> Any:
        try:
            value = deserialize(response, response_type)
            _require_ids(value)
        except Exception as error:  # the client checks nothing: anything may come of another shape
            reason = getattr(error, "reason", None) or error  # of its own errors; their text has several lines
            raise errors.unreadable(response.method, response.url, response.status, reason=str(reason)) from None
        return value

    return read


def _require_ids(value: Any) -> None:
    items = getattr(value, _LISTS[type(value)]) or [] if type(value) in _LISTS else [value]
    for item in items:
        if item is None:
            raise ValueError("null in a list")
        if type(item) in _IDS and not getattr(item, _IDS[type(item)]):
            raise ValueError(f"no {_IDS[type(item)]}")


def _printable(value: Any) -> Any:
    """`value` with printable text only: names and messages of it are shown on a terminal, and none is sent back."""
    if isinstance(value, dict):
        return {printable(key): _printable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_printable(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
