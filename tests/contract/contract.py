"""KFP's REST contract: which requests its API takes, and how its answers look.

From the official OpenAPI file if it is available, else from the generated models of kfp_server_api. Both are read
strictly: a property that the definition does not have is an error, and by the official file one that only the API sets.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jsonschema
import kfp_server_api

FORMATS = jsonschema.FormatChecker(formats=())


@FORMATS.checks("date-time", raises=ValueError)
def _is_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@dataclass(frozen=True)
class Operation:
    """One method of one path.

    Attributes:
        method, path: as the OpenAPI file writes them.
        query: type of each query parameter by name.
        body: name of the definition that the JSON body has; None = no body.
        answer: name of the definition of the answer; None = an empty object.
        multipart: the request is a form with the file `uploadfile`.
    """

    method: str
    path: str
    query: Mapping[str, str]
    body: str | None = None
    answer: str | None = None
    multipart: bool = False

    def matches(self, method: str, path: str) -> dict[str, str] | None:
        """The path's parameters; None where the request is for another operation."""
        pattern = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/:]+)", re.escape(self.path))
        match = re.fullmatch(pattern, path) if method == self.method else None
        return match.groupdict() if match else None


class Contract:
    """What requests and answers must look like; methods return a description of each problem."""

    def __init__(self, operations: list[Operation], requests: dict[str, Any], answers: dict[str, Any]) -> None:
        self.operations = operations
        self._definitions = {"request": requests, "answer": answers}

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
        for operation in self.operations:
            if (parameters := operation.matches(method, path)) is not None:
                return operation, parameters
        return None

    def request_problems(
        self, operation: Operation, query: Mapping[str, list[str]], content_type: str, body: Any
    ) -> list[str]:
        problems = []
        for name, values in query.items():
            kind = operation.query.get(name)
            if kind is None:
                problems.append(f"query parameter {name} is unknown")
            elif len(values) != 1 or (kind == "integer" and not re.fullmatch(r"-?\d+", values[0])):
                problems.append(f"query parameter {name}={values} is no {kind}")
        if operation.multipart:
            if not content_type.startswith("multipart/form-data") or set(body or ()) != {"uploadfile"}:
                problems.append(f"a form with uploadfile is wanted, not {content_type} with {list(body or ())}")
        elif operation.body is not None:
            if not content_type.startswith("application/json"):
                problems.append(f"content type {content_type}")
            problems += self._problems("request", operation.body, body)
        elif body:
            problems.append(f"a body that is not wanted: {body}")
        return problems

    def answer_problems(self, operation: Operation, body: Any) -> list[str]:
        if operation.answer is None:
            return [] if body == {} else [f"an empty object is wanted, not {body}"]
        return self._problems("answer", operation.answer, body)

    def _problems(self, side: str, definition: str, value: Any) -> list[str]:
        definitions = self._definitions[side]
        schema = {"$ref": f"#/definitions/{definition}", "definitions": definitions}
        validator = jsonschema.Draft4Validator(schema, format_checker=FORMATS)
        return [f"{error.json_path}: {error.message[:300]}" for error in validator.iter_errors(value)]


def official(document: dict[str, Any]) -> Contract:
    """The contract of the official OpenAPI (swagger 2.0) file."""
    operations = []
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            parameters = about.get("parameters", [])
            bodies = [_referred(parameter["schema"]) for parameter in parameters if parameter["in"] == "body"]
            operations.append(
                Operation(
                    method=method.upper(),
                    path=path,
                    query={p["name"]: p["type"] for p in parameters if p["in"] == "query"},
                    body=bodies[0] if bodies else None,
                    answer=_referred(about["responses"]["200"]["schema"]),
                    multipart=any(parameter["in"] == "formData" for parameter in parameters),
                )
            )
    definitions = document["definitions"]
    return Contract(
        operations,
        requests={name: _strict(definition, answer=False) for name, definition in definitions.items()},
        answers={name: _strict(definition, answer=True) for name, definition in definitions.items()},
    )


def _referred(schema: dict[str, Any]) -> str | None:
    return schema["$ref"].rpartition("/")[2] if "$ref" in schema else None


def _strict(schema: Any, *, answer: bool) -> dict[str, Any]:
    """A schema that takes no unknown property; in requests none that only the API sets, and int64 as a number too."""
    if "$ref" in schema:
        return {"$ref": schema["$ref"]}
    if schema.get("format") == "int64":
        as_text = {"type": "string", "pattern": r"^-?\d+$"}
        return as_text if answer else {"anyOf": [as_text, {"type": "integer"}]}
    strict = {key: schema[key] for key in ("type", "enum", "format") if key in schema}
    if "items" in schema:
        strict["items"] = _strict(schema["items"], answer=answer)
    if "properties" in schema:
        taken = {name: value for name, value in schema["properties"].items() if answer or not _set_by_api(value)}
        strict["properties"] = {name: _strict(value, answer=answer) for name, value in taken.items()}
        strict["additionalProperties"] = False
    elif schema.get("additionalProperties"):
        strict["additionalProperties"] = _strict(schema["additionalProperties"], answer=answer)
    return strict


def _set_by_api(schema: dict[str, Any]) -> bool:
    return bool(schema.get("readOnly")) or str(schema.get("description", "")).startswith("Output.")


_PAGE = {"page_token": "string", "page_size": "integer", "sort_by": "string", "filter": "string"}
_OF_RUN = {"experiment_id": "string"}
_V2 = "/apis/v2beta1"

# The operations that the commands use. A test compares this table and the generated models with the official file.
USED = [
    Operation("GET", f"{_V2}/healthz", {}, answer="V2beta1GetHealthzResponse"),
    Operation("GET", f"{_V2}/experiments", {**_PAGE, "namespace": "string"}, answer="V2beta1ListExperimentsResponse"),
    Operation("POST", f"{_V2}/experiments", {}, body="V2beta1Experiment", answer="V2beta1Experiment"),
    Operation("GET", f"{_V2}/pipelines", {**_PAGE, "namespace": "string"}, answer="V2beta1ListPipelinesResponse"),
    Operation("POST", f"{_V2}/pipelines", {}, body="V2beta1Pipeline", answer="V2beta1Pipeline"),
    Operation("GET", f"{_V2}/pipelines/{{pipeline_id}}/versions", _PAGE, answer="V2beta1ListPipelineVersionsResponse"),
    Operation(
        "POST",
        f"{_V2}/pipelines/upload_version",
        dict.fromkeys(("name", "display_name", "pipelineid", "description", "tags", "code_source_url"), "string"),
        answer="V2beta1PipelineVersion",
        multipart=True,
    ),
    Operation("GET", f"{_V2}/runs", {**_PAGE, **_OF_RUN, "namespace": "string"}, answer="V2beta1ListRunsResponse"),
    Operation("POST", f"{_V2}/runs", _OF_RUN, body="V2beta1Run", answer="V2beta1Run"),
    Operation("GET", f"{_V2}/runs/{{run_id}}", _OF_RUN, answer="V2beta1Run"),
    Operation("POST", f"{_V2}/runs/{{run_id}}:retry", _OF_RUN),
    Operation("POST", f"{_V2}/runs/{{run_id}}:terminate", _OF_RUN),
    Operation(
        "GET",
        f"{_V2}/recurringruns",
        {**_PAGE, **_OF_RUN, "namespace": "string"},
        answer="V2beta1ListRecurringRunsResponse",
    ),
    Operation("POST", f"{_V2}/recurringruns", {}, body="V2beta1RecurringRun", answer="V2beta1RecurringRun"),
    Operation("GET", f"{_V2}/recurringruns/{{recurring_run_id}}", {}, answer="V2beta1RecurringRun"),
    Operation("DELETE", f"{_V2}/recurringruns/{{recurring_run_id}}", {"propagation_policy": "string"}),
    Operation("POST", f"{_V2}/recurringruns/{{recurring_run_id}}:enable", {}),
    Operation("POST", f"{_V2}/recurringruns/{{recurring_run_id}}:disable", {}),
]


def generated() -> Contract:
    """The contract of the generated models, for the operations that the commands use."""
    definitions = {
        name: _of_model(model)
        for name, model in vars(kfp_server_api.models).items()
        if isinstance(model, type) and hasattr(model, "openapi_types")
    }
    return Contract(USED, requests=definitions, answers=definitions)


def _of_model(model: Any) -> dict[str, Any]:
    if hasattr(model, "allowable_values"):
        return {"type": "string", "enum": model.allowable_values}
    properties = {model.attribute_map[name]: _of_type(kind) for name, kind in model.openapi_types.items()}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _of_type(kind: str) -> dict[str, Any]:
    if kind.startswith("list["):
        return {"type": "array", "items": _of_type(kind[5:-1])}
    if kind.startswith("dict("):
        return {"type": "object", "additionalProperties": _of_type(kind[5:-1].partition(", ")[2])}
    plain = {
        "str": {"type": "string"},
        "int": {"type": "integer"},
        "bool": {"type": "boolean"},
        "datetime": {"type": "string", "format": "date-time"},
        "object": {},
    }
    return plain.get(kind) or ({} if kind == "object" else {"$ref": f"#/definitions/{kind}"})
