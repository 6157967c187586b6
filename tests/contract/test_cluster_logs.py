"""`rest logs`: from Kubernetes, else from KFP's own endpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_kfp import FakeKfp
from fake_kubernetes import FakeKubernetes
from kubernetes.config import kube_config

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
        "==> rest-rl: pod wf-1, failed, exit code 1 <==",
        "==> rest-rl: pod wf-2, failed: OOMKilled, exit code 137 <==",
    ]
    assert at_server("logs", "mine", "prepare-data").out == "data\n"


def test_tail_and_follow_are_asked_for(at_server: Rest, kubernetes: FakeKubernetes, run_id: str) -> None:
    add(kubernetes, run_id, "wf-1", "rest-rl.executor", 5, "a\nb\nc\n", state={"running": {}}, phase="Running")
    assert at_server("logs", "mine", "rest-rl", "--tail", "2", "--follow").out == "b\nc\n"
    assert kubernetes.requests[-1][1] == {"container": ["main"], "tailLines": ["2"], "follow": ["True"]}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (
            {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off\npulling x"}},
            "ImagePullBackOff: Back-off pulling x",
        ),
        ({}, "Unschedulable: 0/3 nodes: no GPU"),
        ({"waiting": {"reason": "PodInitializing"}}, "ImagePullBackOff: no such image"),
    ],
)
def test_a_pod_that_has_not_started_says_why(
    at_server: Rest, kubernetes: FakeKubernetes, run_id: str, state: dict[str, Any], reason: str
) -> None:
    launcher = {"name": "kfp-launcher", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    before = {"initContainerStatuses": [{**launcher, "state": waiting}]} if "PodInit" in str(state) else {}
    add(kubernetes, run_id, "wf-1", "rest-rl.executor", 5, None, state=state, phase="Pending", **before)
    outcome = at_server("logs", "mine", "rest-rl")
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == f"==> rest-rl: pod wf-1, pending: {reason} <==\n"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {"state": {}, "reason": "Evicted", "message": "The node was low on memory."},
            "failed: Evicted: The node was low on memory.",
        ),
        (
            {"state": {"terminated": {"exitCode": 137, "reason": "Error"}}, "reason": "DeadlineExceeded"},
            "failed: DeadlineExceeded, exit code 137",
        ),
    ],
)
def test_a_pod_that_was_ended_from_outside_says_why(
    at_server: Rest, kubernetes: FakeKubernetes, run_id: str, status: dict[str, Any], reason: str
) -> None:
    add(kubernetes, run_id, "wf-1", "rest-rl.executor", 5, "l\n", phase="Failed", **status)
    assert at_server("logs", "mine", "rest-rl").err == f"==> rest-rl: pod wf-1, {reason} <==\n"


def test_a_log_that_is_gone_hides_no_other(
    at_server: Rest, kfp_server: FakeKfp, kubernetes: FakeKubernetes, run_id: str
) -> None:
    details = kfp_server.runs[run_id]["run_details"]["task_details"]
    tried = {task["display_name"]: task["pod_name"] for task in details}
    kfp_server.logs = {tried["executor(1)"]: "from KFP\n"}
    outcome = at_server("logs", "mine")
    assert (outcome.code, outcome.out) == (0, "from KFP\n")
    assert f"no log of pod {tried['executor(0)']} was found" in outcome.err
    for number, log in enumerate([None, "from Kubernetes\n", None]):
        add(kubernetes, run_id, f"wf-{number}", "rest-rl.executor", number, log, state=EXIT_1, phase="Failed")
    outcome = at_server("logs", "mine")
    assert (outcome.code, outcome.out) == (0, "from Kubernetes\n")
    assert [line.split()[3] for line in outcome.err.splitlines() if line.startswith("==>")] == [
        "wf-0,",
        "wf-1,",
        "wf-2,",
    ]
    assert outcome.err.count("the container is gone") == 2


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "current-context: x\n", "\x00"])
def test_an_unusable_kubeconfig_is_no_access_to_kubernetes(
    at_server: Rest, kfp_server: FakeKfp, run_id: str, content: str, tmp_path: Path
) -> None:
    (tmp_path / "kubeconfig").write_text(content, encoding="utf-8")
    assert "there is no access to Kubernetes (" in at_server("logs", "mine").error


def test_another_server_than_kubernetes_is_none(at_server: Rest, kfp_server: FakeKfp, run_id: str) -> None:
    FakeKubernetes.write_kubeconfig(Path(kube_config.KUBE_CONFIG_DEFAULT_LOCATION), kfp_server.url, token="t")
    kfp_server.fail("GET", "/namespaces/", "page")
    assert f"what answers at {kfp_server.url} is not the Kubernetes API" in at_server("logs", "mine").error


def test_a_log_in_page_is_no_log(at_server: Rest, kfp_server: FakeKfp, run_id: str) -> None:
    kfp_server.fail("GET", "/log", "page", times=10)
    assert "'<!doctype html>" in at_server("logs", "mine").error


def test_what_came_of_a_log_is_printed(at_server: Rest, kfp_server: FakeKfp, run_id: str) -> None:
    details = kfp_server.runs[run_id]["run_details"]["task_details"]
    kfp_server.logs = {task["pod_name"]: "second\n" for task in details}
    kfp_server.fail("GET", "/log", "half")  # the first attempt's
    outcome = at_server("logs", "mine")
    assert (outcome.code, outcome.out) == (2, '{"run_id": "\nsecond\n')
    assert "broke off (" in outcome.err


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
def test_where_no_log_is_left_the_error_says_where_it_was_looked_for(
    at_server: Rest, run_id: str, access: str, why: str, request: pytest.FixtureRequest
) -> None:
    if access != "none":
        kubernetes = request.getfixturevalue("kubernetes")
        kubernetes.refuse = 403 if access == "refused" else None
    error = at_server("logs", "mine").error
    assert (
        why in error
        and "has none in its archive (http://" in error
        and "with 500: Failed to read logs from pod" in error
    )


def test_following_needs_kubernetes(at_server: Rest, run_id: str) -> None:
    assert "cannot be followed: there is no access to Kubernetes" in at_server("logs", "mine", "--follow").error


def test_stages_that_are_not_there(at_server: Rest, kfp_server: FakeKfp, run_id: str) -> None:
    assert "did you mean 'rest-rl'?" in at_server("logs", "mine", "restrl").error
    kfp_server.add_run("new", "PENDING")
    assert "no stage of it has begun" in at_server("logs", "new").error


def test_the_stage_that_is_running_is_shown_where_none_failed(at_server: Rest, kfp_server: FakeKfp) -> None:
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
