"""Answers of an evaluation as MLflow's traces: its pages filter them, open them, and put two policies side by side.

A trace is one item: question and tools, the calls, the expected ones, the verdict and why; a dialogue has one span a
step. Of a large evaluation a part is sent (`chosen`), so that time and rows stay bounded; rows.jsonl has every answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow.entities import Assessment, Span, TraceInfo

Row = Mapping[str, Any]

MAX_TRACES = 200
"""Of one evaluation. A trace takes two requests and a few rows of MLflow's database."""
RUN_TYPE = ("mlflow.runType", "genai_evaluate")
"""Tag of a run that MLflow's page "Evaluation runs" lists."""
_MAX_TOOLS = 20_000  # characters of tools in a trace; of longer lists it has the names
_PREVIEW = 1000  # characters of what MLflow's table shows; its own limit
_REQUEST_ID = 50  # characters, in MLflow's database
_TRACE_ID, _SPAN_ID = 32, 16  # hexadecimal digits


def chosen(rows: Sequence[Row], most: int = MAX_TRACES) -> list[Row]:
    """At most `most` rows, evenly over the categories, the first of each: the same items of every policy."""
    categories: dict[str, list[Row]] = {}
    for row in rows:
        categories.setdefault(row["category"], []).append(row)
    in_turn = (row for round_ in zip_longest(*categories.values()) for row in round_ if row is not None)
    kept = [row["id"] for _, row in zip(range(most), in_turn, strict=False)]
    return [row for row in rows if row["id"] in set(kept)]


def send(uri: str, row: Row, *, experiment_id: str, run_id: str, rules: Sequence[str], time_ms: int) -> None:
    """Write one answer's trace to MLflow; see `trace`."""
    from mlflow.tracing.client import TracingClient

    client = TracingClient(uri)
    info, spans = trace(row, experiment_id=experiment_id, run_id=run_id, rules=rules, time_ms=time_ms)
    client.start_trace(info)
    client.log_spans(experiment_id, spans)


def trace(
    row: Row, *, experiment_id: str, run_id: str, rules: Sequence[str], time_ms: int
) -> tuple[TraceInfo, list[Span]]:
    """One answer as a trace of the evaluation's run.

    Its ids depend on the run and the item alone, so that a trace which is sent twice is there once.

    Args:
        row: of rows.jsonl (`rest_core.evaluation.evaluate`).
        rules: the columns with verdicts.
        time_ms: when it was recorded, in milliseconds since 1970.
    """
    from mlflow.entities import TraceInfo, TraceLocation, TraceState
    from mlflow.tracing.constant import TraceMetadataKey

    key = f"{run_id}/{row['id']}"
    trace_id = f"tr-{_digits(key, _TRACE_ID)}"
    inputs, outputs = _inputs(row), _outputs(row)
    duration = None if row["seconds"] is None else round(1000 * row["seconds"])  # answers of a batch are not timed
    tokens = {"input_tokens": row["prompt_tokens"], "output_tokens": row["response_tokens"]}
    info = TraceInfo(
        trace_id=trace_id,
        trace_location=TraceLocation.from_experiment_id(experiment_id),
        request_time=time_ms,
        execution_duration=duration,
        state=TraceState.OK,
        client_request_id=row["id"][:_REQUEST_ID],
        request_preview=_preview(_asked(row)),
        response_preview=_preview(outputs["calls"] or outputs["response"]),
        trace_metadata={
            TraceMetadataKey.SOURCE_RUN: run_id,
            TraceMetadataKey.TOKEN_USAGE: json.dumps(tokens | {"total_tokens": sum(tokens.values())}),
        },
        tags={"mlflow.traceName": row["id"], "category": row["category"]},
        assessments=list(_assessments(row, rules, key, run_id, trace_id, time_ms)),
    )
    root = _span(key, trace_id, None, row["id"], "CHAIN", time_ms, duration or 0, inputs, outputs)
    return info, [root, *_steps(row, key, trace_id, time_ms)]


def _inputs(row: Row) -> dict[str, Any]:
    tools: Any = row["tools"]
    if len(json.dumps(tools)) > _MAX_TOOLS:
        tools = [tool["name"] for tool in tools]
    return {"id": row["id"], "question": row["question"], "tools": tools}


def _asked(row: Row) -> str:
    """The item, and what its user says: MLflow puts two policies' traces of one text side by side."""
    return " | ".join([row["id"], *(one["content"] for one in row["question"] if one["role"] == "user")])


def _outputs(row: Row) -> dict[str, Any]:
    return {"calls": row["calls"], "response": row["response"], "skipped": row["skipped"]}


def _assessments(
    row: Row, rules: Sequence[str], key: str, run_id: str, trace_id: str, time_ms: int
) -> Iterator[Assessment]:
    from mlflow.entities import AssessmentSource, AssessmentSourceType, Expectation, Feedback
    from mlflow.tracing.constant import AssessmentMetadataKey

    why = _plain("; ".join(str(part) for part in (row["error_type"], row["error"]) if part)) or None
    found: list[Assessment] = [Feedback(rule, "yes" if row[rule] else "no", rationale=why) for rule in rules]
    if row["kind"] is not None:
        found.append(Feedback("why_wrong", str(row["kind"]), rationale=why))
    if row["expected"] is not None:
        found.append(Expectation("expected", row["expected"]))
    for one in found:
        one.source = AssessmentSource(AssessmentSourceType.CODE, "rest-pipelines")
        one.assessment_id = f"a-{_digits(f'{key}/{one.name}', _TRACE_ID)}"
        one.trace_id, one.span_id = trace_id, _digits(key, _SPAN_ID)
        one.metadata = {AssessmentMetadataKey.SOURCE_RUN_ID: run_id}
        one.create_time_ms = one.last_update_time_ms = time_ms
        yield one


def _steps(row: Row, key: str, trace_id: str, time_ms: int) -> Iterator[Span]:
    """The steps of a dialogue in their order; single steps are not timed."""
    number = 0
    for turn, steps in enumerate(row.get("turns", ())):
        for step in steps:
            number += 1
            name = f"turn {turn + 1}, step {number}"
            outputs = {name: step[name] for name in ("calls", "results", "response")}
            at = time_ms + number
            yield _span(f"{key}/{number}", trace_id, _digits(key, _SPAN_ID), name, "LLM", at, 0, None, outputs)


def _span(
    key: str,
    trace_id: str,
    parent: str | None,
    name: str,
    kind: str,
    start_ms: int,
    duration_ms: int,
    inputs: Any,
    outputs: Any,
) -> Span:
    from mlflow.entities import Span
    from mlflow.tracing.constant import SpanAttributeKey

    attributes = {
        SpanAttributeKey.REQUEST_ID: trace_id,
        SpanAttributeKey.SPAN_TYPE: kind,
        SpanAttributeKey.INPUTS: inputs,
        SpanAttributeKey.OUTPUTS: outputs,
    }
    return Span.from_dict(
        {
            "trace_id": trace_id,
            "span_id": _digits(key, _SPAN_ID),
            "parent_span_id": parent,
            "name": name,
            "start_time_unix_nano": start_ms * 1_000_000,
            "end_time_unix_nano": (start_ms + duration_ms) * 1_000_000,
            "status": {"code": "OK"},
            "attributes": {name: json.dumps(value) for name, value in attributes.items() if value is not None},
        }
    )


def _preview(value: Any) -> str:
    text = _plain(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if len(text) <= _PREVIEW else f"{text[: _PREVIEW - 1]}…"


def _plain(text: str) -> str:
    """Without U+0000, which PostgreSQL refuses."""
    return text.replace("\x00", "\ufffd")


def _digits(text: str, count: int) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:count]
