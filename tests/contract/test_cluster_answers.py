"""Answers that are JSON, but not the API's: told in one line, or shown as far as they go."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from fake_kfp import FakeKfp

Rest = Callable[..., Any]

EXECUTOR = {"display_name": "executor", "state": "RUNNING", "pod_name": "wf-system-2"}
STAGE = {
    "display_name": "rest-rl",
    "state": "RUNNING",
    "pod_name": "wf-system-1",
    "start_time": "2026-01-01T00:00:00Z",
    "child_tasks": [{"pod_name": "wf-2"}],
}


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"[]",
        b'"ok"',
        b"3",
        b"",
        b"\xff",
        b"[" * 100_000,
        b'{"runs": NaN}',
        b'{"runs": 3}',
        b'{"runs": [null]}',
        b'{"runs": "abc"}',
        b'{"runs": [{"display_name": "x"}]}',
        b'{"runs": [{"run_id": "x", "created_at": "yesterday"}]}',
        b'{"runs": [{"run_id": "x", "created_at": 5}]}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_list_of_another_shape_is_refused(at_server: Rest, kfp_server: FakeKfp, body: bytes) -> None:
    kfp_server.fail("GET", "/runs", body)
    error = at_server("status").error
    assert error.startswith(f"{kfp_server.url} answers /apis/v2beta1/runs with ")
    assert "Reason:" not in error


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"'])
@pytest.mark.parametrize("path", ["/healthz", "/runs/"])
def test_so_is_any_other_answer(at_server: Rest, kfp_server: FakeKfp, path: str, body: bytes) -> None:
    run_id = kfp_server.add_run("mine", "RUNNING")
    kfp_server.fail("GET", path, body)
    assert "no valid JSON (no object)" in at_server(*(["status"] if path == "/healthz" else ["status", run_id])).error


@pytest.mark.parametrize(
    "run",
    [
        {"run_details": {"task_details": [STAGE, {**EXECUTOR, "start_time": "2026-01-01T00:00:00"}]}},  # of no zone
        {
            "run_details": {"task_details": [STAGE, {**EXECUTOR, "child_tasks": [{"pod_name": "wf-2"}]}]}
        },  # its own child
        {"run_details": {"task_details": [STAGE, EXECUTOR, None, {"pod_name": "wf-system-3", "child_tasks": [None]}]}},
        {"run_details": {"task_details": [STAGE, EXECUTOR, {**STAGE, "display_name": None, "pod_name": "wf-s-4"}]}},
        *(
            {"pipeline_spec": spec, "run_details": {"task_details": [STAGE, EXECUTOR]}}
            for spec in ("x", [1], {"pipeline_spec": None}, {"root": {"dag": {"tasks": []}}}, {"components": 3})
        ),
        {
            "pipeline_spec": {  # a component within itself
                "components": {"c": {"dag": {"tasks": {"rest-rl": {}, "again": {"componentRef": {"name": "c"}}}}}},
                "root": {"dag": {"tasks": {"first": {"componentRef": {"name": "c"}}}}},
            },
            "run_details": {"task_details": [STAGE, EXECUTOR]},
        },
    ],
)
def test_a_runs_stages_are_shown_as_far_as_they_can_be_read(
    at_server: Rest, kfp_server: FakeKfp, run: dict[str, Any]
) -> None:
    run_id = kfp_server.add_run("mine", "RUNNING")
    kfp_server.fail("GET", "/runs/", json.dumps({"run_id": run_id, **run}).encode(), times=2)
    kfp_server.logs["wf-system-2"] = "a line\n"
    outcome = at_server("status", run_id)
    assert outcome.code == 0
    assert "rest-rl   running" in outcome.out
    outcome = at_server("logs", run_id, "rest-rl")
    assert (outcome.code, outcome.out) == (0, "a line\n")


def test_names_are_text_and_nothing_for_the_terminal(at_server: Rest, kfp_server: FakeKfp) -> None:
    run_id = kfp_server.add_run("a[/b]\x1b[31m\x07\ud800", "RUNNING")
    task = {**STAGE, "display_name": "x[/red]y", "error": {"message": "[bold]\x9bno"}}
    kfp_server.runs[run_id]["run_details"]["task_details"] = [task, EXECUTOR]
    listed, shown = at_server("status").out, at_server("status", run_id).out
    assert "a[/b] [31m" in listed and "a[/b] [31m" in shown
    assert "x[/red]y" in shown and "[bold] no" in shown
    assert not {"\x1b", "\x07", "\x9b", "\ud800"} & set(listed + shown)


def test_a_mark_of_the_byte_order_hides_no_runs(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.fail("GET", "/runs", b'\xef\xbb\xbf{"runs": [{"run_id": "x", "display_name": "\xc3\xbc"}]}')
    assert "ü" in at_server("status").out
