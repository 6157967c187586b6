"""`rest status | retry | stop` and `--wait`."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_kfp import FakeKfp
from rich.console import Console

from pipelines.cluster import follow
from pipelines.cluster.client import Cluster
from pipelines.cluster.request import run_request
from pipelines.platform import Platform
from rest_core import config
from rest_core.config import TrackingConfig
from rest_core.operations.status.mlflow_runs import STATUS_TAG
from rest_core.operations.tracking import store
from rest_core.operations.tracking.tags import KIND_TAG, PIPELINE_RUN_TAG

Rest = Callable[..., Any]

GOING = {"prepare-data": "SUCCEEDED", "sft-warmup": "RUNNING"}
TRAINING = {"prepare-data": "SUCCEEDED", "sft-warmup": "SUCCEEDED", "rest-rl": "RUNNING"}
FAILED = {**TRAINING, "rest-rl": "FAILED"}
DONE = {**TRAINING, "rest-rl": "SUCCEEDED", "evaluate-bfcl-trained": "SUCCEEDED"}


def rows(out: str) -> dict[str, list[str]]:
    """First word of each line → the others."""
    return {words[0]: words[1:] for line in out.splitlines() if (words := line.split())}


def test_the_latest_runs_are_listed_newest_first(at_server: Rest, kfp_server: FakeKfp) -> None:
    ids = {name: kfp_server.add_run(name, "FAILED") for name in ("first", "second", "third")}
    out = at_server("status", "--limit", "2").out
    assert out.index("third") < out.index("second")
    assert rows(out)["third"][-1] == ids["third"]
    assert rows(out)["third"][0] == "failed"
    assert "first" not in out
    [request] = kfp_server.sent("GET", "/runs")
    assert request.query["sort_by"] == ["created_at desc"]


@pytest.mark.parametrize("by", ["id", "name"])
def test_a_runs_stages_are_shown(at_server: Rest, kfp_server: FakeKfp, by: str) -> None:
    spec = run_request(config.load("tiny"), Platform()).pipeline_spec
    run_id = kfp_server.add_run("mine", "FAILED", FAILED, pipeline_spec=spec, error={"code": 2, "message": "it\nbroke"})
    outcome = at_server("status", run_id if by == "id" else "mine")
    assert outcome.code == 0
    seen = rows(outcome.out)
    assert seen["mine:"] == ["failed"]
    assert seen["prepare-data"][0] == "succeeded"
    assert seen["rest-rl"][0] == "failed"
    assert "exit code 1" in outcome.out
    assert seen["evaluate-bfcl-trained"] == ["pending"]  # known from the pipeline, not begun
    assert "it broke" in outcome.out
    assert f"{kfp_server.url}/#/runs/details/{run_id}" in outcome.out
    assert not {"root", "executor", "rest-rl-driver"} & set(seen)


def test_stages_are_known_without_the_pipeline_too(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.add_run("mine", "RUNNING", {"prepare-data": "SUCCEEDED", "rest-rl": [["FAILED", "RUNNING"]]})
    seen = rows(at_server("status", "mine").out)
    assert seen["rest-rl"][0] == "running"
    assert not {"root", "executor", "executor(0)"} & set(seen)


def test_a_stage_that_fails_in_its_driver_has_failed(at_server: Rest, kfp_server: FakeKfp) -> None:
    spec = run_request(config.load("tiny"), Platform()).pipeline_spec
    kfp_server.add_run("mine", "FAILED", {**GOING, "rest-rl": "DRIVER FAILED"}, pipeline_spec=spec)
    out = at_server("status", "mine").out
    assert rows(out)["rest-rl"][0] == "failed"
    assert "no such input" in out


def test_a_result_from_the_cache_is_no_run(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.add_run("mine", "RUNNING", {"prepare-data": "CACHED", "sft-warmup": "RUNNING"})
    assert rows(at_server("status", "mine").out)["prepare-data"][0] == "cached"
    assert "came from KFP's cache" in at_server("logs", "mine", "prepare-data").error


def test_iterations_of_a_loop_are_counted(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.add_run("mine", "RUNNING", {"rest-rl": ["SUCCEEDED", "RUNNING", "SUCCEEDED"]})
    assert "2 succeeded, 1 running" in at_server("status", "mine").out


def test_stages_inside_an_exit_handler_are_found(at_server: Rest, kfp_server: FakeKfp) -> None:
    inner = {"train": {"componentRef": {"name": "comp-train"}}}
    spec = {
        "components": {"comp-exit-handler-1": {"dag": {"tasks": inner}}, "comp-train": {"executorLabel": "exec-train"}},
        "root": {"dag": {"tasks": {"exit-handler-1": {"componentRef": {"name": "comp-exit-handler-1"}}}}},
    }
    kfp_server.add_run("mine", "RUNNING", {"exit-handler-1": "RUNNING", "train": "RUNNING"}, pipeline_spec=spec)
    seen = rows(at_server("status", "mine").out)
    assert seen["train"][0] == "running"
    assert "exit-handler-1" not in seen


def test_a_run_that_is_not_there(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.add_run("qwen-official-seed0", "RUNNING")
    assert "did you mean 'qwen-official-seed0'?" in at_server("status", "qwen-oficial-seed0").error
    assert "not found" in at_server("status", "1fa3b9a4-0f6c-4b1c-8a4a-5d8f5c1b2f3d").error


def test_a_name_of_several_runs(at_server: Rest, kfp_server: FakeKfp) -> None:
    ids = [kfp_server.add_run("mine", "FAILED") for _ in range(2)]
    error = at_server("stop", "mine").error
    assert "2 runs are named 'mine'" in error
    assert error.index(ids[1]) < error.index(ids[0])


def test_wait_prints_each_change_once_and_ends_with_the_run(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.progress = [
        ("PENDING", {}),
        ("RUNNING", GOING),
        ("RUNNING", GOING),
        ("RUNNING", TRAINING),
        ("SUCCEEDED", DONE),
    ]
    outcome = at_server("submit", "--profile", "tiny", "--wait")
    assert outcome.code == 0, outcome
    changes = [line.split()[1:] for line in outcome.out.splitlines()[3:-1]]
    assert changes == [
        ["prepare-data", "succeeded"],
        ["sft-warmup", "running"],
        ["sft-warmup", "succeeded"],
        ["rest-rl", "running"],
        ["rest-rl", "succeeded"],
        ["evaluate-bfcl-trained", "succeeded"],
    ]
    assert ": succeeded" in outcome.out.splitlines()[-1]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_wait_ends_with_1_where_the_run_did_not_succeed(at_server: Rest, kfp_server: FakeKfp, state: str) -> None:
    kfp_server.progress = [("RUNNING", TRAINING), (state, FAILED)]
    outcome = at_server("submit", "--profile", "tiny", "--wait")
    assert outcome.code == 1
    [run_id] = kfp_server.runs
    assert outcome.err == f"stage rest-rl failed: exit code 1; see `rest logs {run_id} rest-rl`\n"


@pytest.mark.parametrize("how", [503, "drop", "page", b""])
def test_wait_outlasts_an_api_that_is_away(at_server: Rest, kfp_server: FakeKfp, how: int | str | bytes) -> None:
    """Some proxies say so in a page of their own, with status 200."""
    kfp_server.progress = [("RUNNING", TRAINING), ("SUCCEEDED", DONE)]
    kfp_server.fail("GET", "/runs/", how, times=12)  # more than the retries of one look
    outcome = at_server("submit", "--profile", "tiny", "--wait")
    assert outcome.code == 0, outcome
    assert outcome.out.count("still waiting") == 1


def test_wait_gives_up_after_long(at_server: Rest, kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "PATIENCE_SECONDS", 0.01)
    kfp_server.fail("GET", "/runs/", 503, times=10_000)
    assert "with 503" in at_server("submit", "--profile", "tiny", "--wait").error


def test_wait_ends_where_the_api_refuses(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.fail("GET", "/runs/", 401, times=10_000)
    assert "--token-file" in at_server("submit", "--profile", "tiny", "--wait").error


def test_an_interrupted_wait_says_that_the_run_goes_on(
    at_server: Rest, kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(follow.time, "sleep", interrupt)
    outcome = at_server("submit", "--profile", "tiny", "--wait")
    [run_id] = kfp_server.runs
    assert outcome.code == 130
    assert outcome.err.startswith(f"the run continues: `rest status {run_id} --wait`")
    assert kfp_server.runs[run_id]["state"] == "PENDING"


def test_on_a_terminal_wait_is_a_table(kfp_server: FakeKfp) -> None:
    run_id = kfp_server.add_run("mine", "SUCCEEDED", DONE)
    screen = io.StringIO()
    cluster = Cluster(host=kfp_server.url)
    assert follow.follow(cluster, run_id, Console(file=screen, force_terminal=True, width=100)).state == "SUCCEEDED"
    assert rows(re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue()))["rest-rl"][0] == "succeeded"


def test_status_can_wait(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.add_run("mine", "SUCCEEDED", DONE)
    assert "rest-rl  succeeded" in at_server("status", "mine", "--wait").out
    assert "needs a run" in at_server("status", "--wait").error


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_retry_starts_again_what_failed(at_server: Rest, kfp_server: FakeKfp, state: str) -> None:
    run_id = kfp_server.add_run("mine", state, FAILED)
    kfp_server.progress = [("RUNNING", TRAINING), ("SUCCEEDED", DONE)]
    outcome = at_server("retry", "mine", "--wait")
    assert outcome.code == 0, outcome
    assert len(kfp_server.sent("POST", f"/runs/{run_id}:retry")) == 1
    assert kfp_server.runs[run_id]["state"] == "SUCCEEDED"


@pytest.fixture
def recorded(tracking: TrackingConfig, kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run that has failed, and how MLflow has it, as its report-status has left it."""
    client = store.open_client(str(tracking.uri))
    given = {"tracking": tracking.to_parameter(), "storage": {"location": "/work/rest"}, "launch": {}}
    run_id = kfp_server.add_run("mine", "FAILED", FAILED, runtime_config={"parameters": given})
    experiment = client.create_experiment(tracking.experiment)
    tags = {PIPELINE_RUN_TAG: run_id, KIND_TAG: "pipeline", STATUS_TAG: "rest-rl failed: out of memory"}
    parent = client.create_run(experiment, tags=tags).info.run_id
    client.set_terminated(parent, "FAILED")
    monkeypatch.setattr(store, "is_local", lambda uri: False)
    return lambda: (client.get_run(parent).info.status, client.get_run(parent).data.tags[STATUS_TAG])


@pytest.mark.parametrize(("state", "end"), [("SUCCEEDED", ("FINISHED", "succeeded")), ("FAILED", ("FAILED", "failed"))])
def test_a_retried_run_ends_with_a_true_report(
    at_server: Rest, kfp_server: FakeKfp, recorded: Any, state: str, end: tuple[str, str]
) -> None:
    """KFP does not run report-status again."""
    kfp_server.progress = [("RUNNING", TRAINING), (state, DONE)]
    outcome = at_server("retry", "mine", "--wait")
    status, line = recorded()
    assert status == end[0] and line.startswith(end[1]), line
    assert f"# {'✅ succeeded' if state == 'SUCCEEDED' else '❌ failed'}" in outcome.out
    assert "Its scratch space stays: /work/rest/runs is on a volume" in outcome.out


def test_the_end_of_a_retried_run_may_be_reported_later(at_server: Rest, kfp_server: FakeKfp, recorded: Any) -> None:
    kfp_server.progress = [("SUCCEEDED", DONE)]
    assert at_server("retry", "mine").code == 0
    assert recorded() == ("FAILED", "rest-rl failed: out of memory")
    assert "KFP does not run it again" in at_server("status", "mine").err
    assert recorded()[0] == "FAILED"
    assert "# ✅ succeeded" in at_server("status", "mine", "--report").out
    assert recorded() == ("FINISHED", "succeeded")


def test_without_mlflows_address_a_retried_run_says_how_its_end_is_reported(
    at_server: Rest, kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    kfp_server.add_run("mine", "FAILED", FAILED, runtime_config={"parameters": {"tracking": {}}})
    kfp_server.progress = [("SUCCEEDED", DONE)]
    outcome = at_server("retry", "mine", "--wait")
    assert outcome.code == 0
    assert "set MLFLOW_TRACKING_URI to the server" in outcome.err and "--report" in outcome.err


@pytest.mark.parametrize(
    ("state", "parameters", "message"),
    [("RUNNING", {"tracking": {}}, "has not ended"), ("FAILED", {}, "is of another pipeline")],
)
def test_what_cannot_be_reported(
    at_server: Rest, kfp_server: FakeKfp, state: str, parameters: dict[str, Any], message: str
) -> None:
    kfp_server.add_run("mine", state, runtime_config={"parameters": parameters})
    assert message in at_server("status", "mine", "--report").err
    assert "--report needs a run" in at_server("status", "--report").error


@pytest.mark.parametrize("state", ["RUNNING", "SUCCEEDED", "PENDING"])
def test_only_what_failed_is_retried(at_server: Rest, kfp_server: FakeKfp, state: str) -> None:
    kfp_server.add_run("mine", state)
    assert f"is {state.lower()}: only a run that failed" in at_server("retry", "mine").error
    assert not kfp_server.sent("POST", ":retry")


def test_stop(at_server: Rest, kfp_server: FakeKfp) -> None:
    run_id = kfp_server.add_run("mine", "RUNNING")
    assert at_server("stop", "mine").out == "stopping mine\n"
    assert kfp_server.runs[run_id]["state"] == "CANCELING"
    assert at_server("stop", "mine").out == "mine is canceling already\n"
    assert len(kfp_server.sent("POST", ":terminate")) == 1


@pytest.mark.parametrize(("command", "state"), [("retry", "FAILED"), ("stop", "RUNNING")])
@pytest.mark.parametrize("how", ["drop", "half", "hang", "page", 500, 503])
def test_a_change_is_sent_once(at_server: Rest, kfp_server: FakeKfp, command: str, state: str, how: int | str) -> None:
    run_id = kfp_server.add_run("mine", state)
    kfp_server.fail("POST", "/runs/", how, after=True)
    error = at_server(command, "mine", "--timeout", "0.5").error
    assert "it is not known whether it was carried out: see `rest status`" in error
    assert [request.path for request in kfp_server.requests if request.method == "POST"] == [
        f"/apis/v2beta1/runs/{run_id}:{'retry' if command == 'retry' else 'terminate'}"
    ]
