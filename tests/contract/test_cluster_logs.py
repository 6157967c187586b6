"""`rest logs`: from Kubernetes, else from KFP's own endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_kfp import FakeKfp
from fake_kubernetes import FakeKubernetes

Rest = Callable[..., Any]

FAILED = {"prepare-data": "SUCCEEDED", "rest-rl": [["FAILED", "FAILED"]], "report-status": "SUCCEEDED"}
EXIT_1 = {"terminated": {"exitCode": 1, "reason": "Error"}}
EXIT_0 = {"terminated": {"exitCode": 0, "reason": "Completed"}}
KILLED = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}


@pytest.fixture
def kubernetes(tmp_path: Path) -> Iterator[FakeKubernetes]:
    server = FakeKubernetes("kubeflow")
    server.write_kubeconfig(tmp_path / "kubeconfig", server.url, token="t")  # where the client looks
    yield server
    server.close()


@pytest.fixture
def run_id(kfp_server: FakeKfp) -> str:
    return kfp_server.add_run("mine", "FAILED", FAILED)


def add(kubernetes: FakeKubernetes, run_id: str, name: str, node: str, at: int, log: str | None, **more: Any) -> None:
    settings = {"state": EXIT_0, "phase": "Succeeded", **more}
    kubernetes.add_pod(
        name, run_id=run_id, node=f"wf.root.{node}", created=f"2026-01-01T00:00:{at:02}Z", log=log, **settings
    )


def test_the_failed_stages_attempts_are_printed_in_order(
    at_server: Rest, kubernetes: FakeKubernetes, run_id: str
) -> None:
    add(kubernetes, run_id, "wf-driver", "rest-rl-driver", 1, "driver")
    add(
        kubernetes,
        run_id,
        "wf-2",
        "exit-handler-1.rest-rl.executor(1)",
        9,
        "second ü\nend",
        state=KILLED,
        phase="Failed",
    )
    add(kubernetes, run_id, "wf-1", "exit-handler-1.rest-rl.executor(0)", 5, "first\n", state=EXIT_1, phase="Failed")
    add(kubernetes, run_id, "wf-0", "prepare-data.executor", 2, "data")
    add(kubernetes, "another run", "wf-9", "rest-rl.executor", 2, "no")
    outcome = at_server("logs", "mine")
    assert outcome.code == 0, outcome
    assert outcome.out == "first\nsecond ü\nend\n"
    assert outcome.err.splitlines() == [
        "==> rest-rl: pod wf-1, failed: Error, exit code 1 <==",
        "==> rest-rl: pod wf-2, failed: OOMKilled, exit code 137 <==",
    ]
    assert at_server("logs", "mine", "prepare-data").out == "data\n"


def test_tail_and_follow_are_asked_for(at_server: Rest, kubernetes: FakeKubernetes, run_id: str) -> None:
    add(kubernetes, run_id, "wf-1", "rest-rl.executor", 5, "a\nb\nc\n", state={"running": {}}, phase="Running")
    assert at_server("logs", "mine", "rest-rl", "--tail", "2", "--follow").out == "b\nc\n"
    assert kubernetes.requests[-1][1] == {"container": ["main"], "tailLines": ["2"], "follow": ["True"]}


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off\npulling x"}},
            "ImagePullBackOff: Back-off pulling x",
        ),
        ({}, "Unschedulable: 0/3 nodes: no GPU"),
    ],
)
def test_a_pod_that_has_not_started_says_why(
    at_server: Rest, kubernetes: FakeKubernetes, run_id: str, state: dict[str, Any], told: str
) -> None:
    add(kubernetes, run_id, "wf-1", "rest-rl.executor", 5, None, state=state, phase="Pending")
    outcome = at_server("logs", "mine", "rest-rl")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"==> rest-rl: pod wf-1, pending: {told} <==\n"


def test_a_stage_that_failed_in_its_driver_shows_that(at_server: Rest, kubernetes: FakeKubernetes, run_id: str) -> None:
    add(kubernetes, run_id, "wf-d", "rest-rl-driver", 5, "no such input\n", state=EXIT_1, phase="Failed")
    assert at_server("logs", "mine", "rest-rl").out == "no such input\n"


@pytest.mark.parametrize("access", ["none", "refused", "no pods"])
def test_without_pods_the_log_comes_from_kfp(
    at_server: Rest, kfp_server: FakeKfp, run_id: str, access: str, request: pytest.FixtureRequest
) -> None:
    if access != "none":
        kubernetes = request.getfixturevalue("kubernetes")
        kubernetes.refuse = 403 if access == "refused" else None
    details = kfp_server.runs[run_id]["run_details"]["task_details"]
    tried = {task["display_name"]: task["pod_name"] for task in details}
    kfp_server.logs = {tried["executor(0)"]: "first\n", tried["executor(1)"]: "1\n2\n3"}
    outcome = at_server("logs", "mine")
    assert outcome.code == 0, outcome
    assert outcome.out == "first\n1\n2\n3\n"
    assert at_server("logs", "mine", "--tail", "1").out == "first\n3\n"


@pytest.mark.parametrize(
    ("access", "why"),
    [("none", "no access to Kubernetes"), ("refused", "403: pods is forbidden"), ("no pods", "no pod of it")],
)
def test_where_no_log_is_left_the_user_is_told_where_it_was_looked_for(
    at_server: Rest, run_id: str, access: str, why: str, request: pytest.FixtureRequest
) -> None:
    if access != "none":
        kubernetes = request.getfixturevalue("kubernetes")
        kubernetes.refuse = 403 if access == "refused" else None
    error = at_server("logs", "mine").error
    assert why in error and "none in its archive (500: Failed to read logs from pod" in error


def test_following_needs_kubernetes(at_server: Rest, run_id: str) -> None:
    assert "cannot be followed: there is no access to Kubernetes" in at_server("logs", "mine", "--follow").error


def test_stages_that_are_not_there(at_server: Rest, kfp_server: FakeKfp, run_id: str) -> None:
    assert "did you mean 'rest-rl'?" in at_server("logs", "mine", "restrl").error
    kfp_server.add_run("new", "PENDING")
    assert "no stage of it has begun" in at_server("logs", "new").error


def test_the_stage_that_goes_on_is_shown_where_none_failed(at_server: Rest, kfp_server: FakeKfp) -> None:
    run_id = kfp_server.add_run("going", "RUNNING", {"prepare-data": "SUCCEEDED", "sft-warmup": "RUNNING"})
    [pod] = [
        task["pod_name"]
        for task in kfp_server.runs[run_id]["run_details"]["task_details"]
        if task["display_name"] == "executor" and task["state"] == "RUNNING"
    ]
    kfp_server.logs[pod] = "step 3\n"
    outcome = at_server("logs", "going")
    assert outcome.out == "step 3\n"
    assert outcome.err == f"==> sft-warmup: pod {pod}, running <==\n"
