"""Answers as MLflow's traces, in a real store on SQLite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Trace
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import journal, runs, traces
from rest_core.operations.tracking.delivery import Replay


def row(number: int, category: str = "simple_python", **others: Any) -> dict[str, Any]:
    """A row of rows.jsonl, with a wrong answer."""
    return {
        "id": f"{category}_{number}",
        "category": category,
        "valid": False,
        "kind": "wrong value",
        "error_type": "value_error:string",
        "error": "'Pari' is not 'Paris'",
        "question": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Weather {number}?"}],
        "expected": [{"name": "weather", "arguments": {"city": ["Paris"]}}],
        "calls": [{"name": "weather", "arguments": {"city": "Pari"}}],
        "response": "<tool_call>…</tool_call>",
        "prompt_tokens": 30,
        "response_tokens": 4,
        "seconds": 1.5,
        "skipped": None,
        "tools": [{"name": "weather", "description": "", "parameters": {}}],
        **others,
    }


def sent(tracking: TrackingConfig, client: MlflowClient, spool: Path, rows: list[dict[str, Any]]) -> list[Trace]:
    """The traces of an evaluation with these rows, in their order."""
    with runs.stage_run(tracking, stage="evaluate", pipeline_run="p", spool=spool, parameters={}) as run:
        run.answers(rows, ("valid",))
        assert run.wait(60)
        run_id = run.run_id
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None and run_id is not None
    assert client.get_run(run_id).data.tags["mlflow.runType"] == "genai_evaluate"
    return client.search_traces(locations=[experiment.experiment_id], run_id=run_id, max_results=500)


def test_an_answer_has_question_tools_calls_verdict_and_reason(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    right = row(2, valid=True, kind=None, error_type=None, error=None, expected=None)
    first, second = sent(tracking, client, tmp_path / "spool", [row(1), right])
    assert first.info.client_request_id == "simple_python_1"
    assert first.info.request_preview == "simple_python_1 | Weather 1?"
    assert first.info.tags["category"] == "simple_python"
    assert first.info.execution_duration == 1500
    assert json.loads(first.info.trace_metadata["mlflow.trace.tokenUsage"])["total_tokens"] == 34
    (span,) = first.data.spans
    assert span.inputs["tools"] == row(1)["tools"] and span.inputs["question"] == row(1)["question"]
    assert span.outputs["calls"] == row(1)["calls"]
    found = {one.name: one for one in first.info.assessments}
    assert found["valid"].value == "no" and found["why_wrong"].value == "wrong value"
    assert found["valid"].rationale == "value_error:string; 'Pari' is not 'Paris'"
    assert found["expected"].value == row(1)["expected"]
    assert {one.name: one.value for one in second.info.assessments} == {"valid": "yes"}


def test_a_dialogue_has_one_span_a_step(tracking: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    step = {"calls": [{"name": "touch", "arguments": {}}], "results": ["None"], "response": "…"}
    turns = [[step, step | {"calls": [], "results": []}], [step]]
    (found,) = sent(tracking, client, tmp_path / "spool", [row(1, "multi_turn_base", turns=turns, seconds=None)])
    root, *steps = sorted(found.data.spans, key=lambda span: span.start_time_ns)
    assert [span.name for span in steps] == ["turn 1, step 1", "turn 1, step 2", "turn 2, step 3"]
    assert {span.parent_id for span in steps} == {root.span_id}
    assert steps[0].outputs == step


def test_a_record_that_is_sent_twice_makes_no_second_trace(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def deleted(*_: object, **__: object) -> None:
        """As if the process had been killed before."""

    monkeypatch.setattr("rest_core.operations.tracking.journal.forget", deleted)
    before = sent(tracking, client, tmp_path / "spool", [row(1), row(2)])
    (path,) = journal.find(tmp_path / "spool")
    (path / "state.json").unlink()
    assert Replay(path, str(tracking.uri)).run().left == 0
    after = client.search_traces(locations=[before[0].info.experiment_id], max_results=500)
    assert {one.info.trace_id for one in after} == {one.info.trace_id for one in before}
    assert [len(one.info.assessments) for one in after] == [3, 3]


def test_a_large_evaluation_sends_a_bounded_part_of_every_category() -> None:
    rows = [row(n, category) for category, count in (("a", 500), ("b", 500), ("c", 3)) for n in range(count)]
    kept = traces.chosen(rows, 43)
    assert [sum(one["category"] == name for one in kept) for name in "abc"] == [20, 20, 3]
    assert [one["id"] for one in kept if one["category"] == "b"] == [f"b_{n}" for n in range(20)]
    assert traces.chosen(rows, 5000) == rows


def test_a_long_list_of_tools_is_named_only() -> None:
    tools = [{"name": f"tool_{n}", "description": "x" * 1000, "parameters": {}} for n in range(30)]
    _, (span,) = traces.trace(row(1, tools=tools), experiment_id="1", run_id="r", rules=("valid",), time_ms=5)
    assert span.inputs["tools"] == [tool["name"] for tool in tools]


def test_one_answer_that_is_refused_keeps_no_other_back(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = traces.send

    def refuse_the_second(uri: str, row: dict[str, Any], **others: Any) -> None:
        if row["id"] == "simple_python_2":
            raise MlflowException("too long", error_code=INVALID_PARAMETER_VALUE)
        send(uri, row, **others)

    monkeypatch.setattr(traces, "send", refuse_the_second)
    found = sent(tracking, client, tmp_path / "spool", [row(1), row(2), row(3)])
    assert [one.info.client_request_id for one in found] == ["simple_python_1", "simple_python_3"]
    (path,) = journal.find(tmp_path / "spool")
    assert journal.State.read(path).refused == 1
    assert list(path.rglob("traces-0.json"))  # what was refused stays


def test_text_that_databases_refuse_is_mended() -> None:
    odd = row(1, "x" * 80, calls=[], response="a\x00b", error="\x00", tools=[{"name": "\ud83d"}])
    info, _ = traces.trace(odd, experiment_id="1", run_id="r", rules=("valid",), time_ms=5)
    assert info.response_preview == "a\ufffdb" and "\x00" not in str(info.assessments[0].rationale)
    assert len(info.client_request_id or "") == 50


def test_half_a_surrogate_pair_of_a_model_ends_no_stage(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    odd = row(1, calls=[{"name": "f", "arguments": {"x": "\ud83d"}}])
    (found,) = sent(tracking, client, tmp_path / "spool", [odd])
    assert found.data.spans[0].outputs["calls"][0]["arguments"] == {"x": "\ufffd"}
