"""The end of a run: real MLflow records, a Kubernetes API over HTTP, and each without the other."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from rest_core import manifest, stages
from rest_core.config import LaunchConfig, RlConfig, StorageConfig, TrackingConfig
from rest_core.errors import Preempted, UserError
from rest_core.operations import handoff, pods
from rest_core.operations.status.exit_task import conclude
from rest_core.operations.status.final import FinalStatus, Links
from rest_core.operations.status.mlflow_runs import StageEnd
from rest_core.operations.status.reproduce import commands, locate
from rest_core.operations.tracking import journal, runs, store
from rest_core.operations.tracking.delivery import Replay, deliver
from rest_core.operations.tracking.run_tree import find_pipeline_run
from rest_core.stages.cluster import PAGE_FILE

RUN = "tiny · paper · 2026-01-01 00:00 · 0f3c"
FAILED = FinalStatus(state="FAILED", pipeline_task_name="run", error_code=1, error_message=None)
SUCCEEDED = FinalStatus(state="SUCCEEDED")
LINKS = Links(kfp="https://kfp.example/pipeline/")


@pytest.fixture
def client(tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    """Records are delivered by the test itself: a process for it takes seconds to start."""

    class Idle:
        def __init__(self, *_: Any) -> None: ...

        def finish(self) -> bool:
            return True

    monkeypatch.setattr(runs, "Sender", Idle)
    monkeypatch.delenv(pods.RUN_ID_VARIABLE, raising=False)
    return store.open_client(store.resolve_uri(tracking))


@pytest.fixture
def stage(tracking: TrackingConfig, tmp_path: Path, client: MlflowClient) -> Callable[..., None]:
    """stage("rest-rl", error) is a stage that has run and ended so; `error` "killed" leaves it as SIGKILL does."""

    def run(name: str, error: BaseException | str | None = None, **inputs: str) -> None:
        spool = tmp_path / f"{len(list(tmp_path.glob('*.tracking')))}-{name}.tracking"
        try:
            with runs.stage_run(
                tracking, stage=name, pipeline_run=RUN, spool=spool, parameters={"rl": RlConfig(steps=3)}
            ) as recorded:
                recorded.tags({f"rest.input/{key}": where for key, where in inputs.items()})
                if isinstance(error, BaseException):
                    raise error
        except (UserError, Preempted, ValueError):
            pass
        if error == "killed":
            (path,) = journal.find(spool)
            *lines, last = (path / journal.JOURNAL).read_text(encoding="utf-8").splitlines(keepends=True)
            assert json.loads(last)["op"] == "end"
            (path / journal.JOURNAL).write_text("".join(lines), encoding="utf-8")
            Replay(path, str(tracking.uri)).run()
        else:
            deliver(spool, str(tracking.uri))

    return run


@pytest.fixture
def end(tracking: TrackingConfig, tmp_path: Path, client: MlflowClient) -> Callable[..., tuple[Any, str]]:
    """end(final) concludes the run; returns the outcome and the report."""

    def run(
        final: FinalStatus = FAILED,
        where: TrackingConfig = tracking,
        storage: StorageConfig = StorageConfig(),  # noqa: B008  (immutable)
    ) -> tuple[Any, str]:
        page = tmp_path / "report.md"
        outcome = conclude(where, LINKS, final, storage=storage, launch=LaunchConfig(), pipeline_run=RUN, page=page)
        return outcome, page.read_text(encoding="utf-8")

    return run


def parent(client: MlflowClient, tracking: TrackingConfig) -> Any:
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    found = find_pipeline_run(client, experiment.experiment_id, RUN)
    assert found is not None
    return found


def status_of(client: MlflowClient, tracking: TrackingConfig, name: str) -> str:
    found = client.search_runs([parent(client, tracking).info.experiment_id], f"attributes.run_name = '{name}'")
    return str(found[0].info.status)


def test_a_run_that_went_well(stage: Any, end: Any, client: MlflowClient, tracking: TrackingConfig) -> None:
    stage("prepare-data")
    stage("rest-rl")
    outcome, report = end(SUCCEEDED)
    assert (outcome.succeeded, outcome.line, outcome.failures) == (True, "succeeded", ())
    assert report.startswith("# ✅ succeeded\n")
    assert "| ✅ | prepare-data | FINISHED |" in report
    closed = parent(client, tracking)
    assert (closed.info.status, closed.data.tags["rest.status"]) == ("FINISHED", "succeeded")
    (kept,) = client.list_artifacts(closed.info.run_id, "status")
    assert kept.path == "status/report.md"


def test_the_failing_stage_is_named_with_its_own_words_and_commands(
    stage: Any, end: Any, client: MlflowClient, tracking: TrackingConfig
) -> None:
    stage("prepare-data")
    where = {"dataset": "/minio/mlpipeline/v2/artifacts/a b/dataset", "policy": "/s3/bucket/policy"}
    stage("rest-rl", UserError("rl.learning_rate is too high: lower it"), **where)
    outcome, report = end()
    assert outcome.line == "rest-rl failed: rl.learning_rate is too high: lower it"
    assert report.startswith("# ❌ failed in rest-rl\n")
    assert "| ❌ | rest-rl | FAILED |" in report and "| ✅ | prepare-data | FINISHED |" in report
    download, again = report.split("```sh\n")[1].split("\n```")[0].splitlines()[1:]
    assert shlex.split(download)[:3] == ["mlflow", "artifacts", "download"]
    assert shlex.split(again) == [
        *("rest", "train", "--profile", "reproduce/config.json"),
        *("--dataset", "s3://mlpipeline/v2/artifacts/a b/dataset", "--policy", "s3://bucket/policy"),
        *("--out", "reproduce/rest-rl"),
    ]
    assert parent(client, tracking).data.tags["rest.status"] == outcome.line


def test_the_commands_are_ones_that_our_tools_take(
    stage: Any, client: MlflowClient, tracking: TrackingConfig, tmp_path: Path, end: Any
) -> None:
    """What is downloaded is a profile with the stage's configuration."""
    from pipelines.cli import cli
    from rest_core import config

    stage("rest-rl", UserError("no"), dataset="/no/such/data", policy="/no/such/policy")
    outcome, _ = end()
    *notes, _, download, again = outcome.failures[0].reproduce
    assert notes == [
        f"# /no/such/{name} is a folder of the pod or of its volume: copy it here, and give that folder"
        for name in ("data", "policy")
    ]
    words = shlex.split(download)
    run_id = words[words.index("--run-id") + 1]
    client.download_artifacts(run_id, words[words.index("--artifact-path") + 1], str(tmp_path))
    assert config.load(str(tmp_path / "config.json")).rl == RlConfig(steps=3)
    words = [word.replace("reproduce/", f"{tmp_path}/") for word in shlex.split(again)[1:]]
    result = CliRunner().invoke(cli, [*words, "--set", f"tracking.uri={tracking.uri}"])
    assert isinstance(result.exception, UserError)
    assert "'/no/such/policy' is not there" in str(result.exception)


def test_a_defect_shows_the_end_of_its_traceback(stage: Any, end: Any) -> None:
    stage("rest-rl", ValueError("tensors do not fit"))
    outcome, report = end()
    assert outcome.line == "rest-rl failed: ValueError: tensors do not fit"
    assert "Traceback (most recent call last)" in report
    assert "ValueError: tensors do not fit" in outcome.failures[0].log


def test_a_killed_stage_is_found_by_its_open_run_and_closed(
    stage: Any, end: Any, client: MlflowClient, tracking: TrackingConfig
) -> None:
    stage("prepare-data")
    stage("rest-rl", "killed")
    assert status_of(client, tracking, "rest-rl") == "RUNNING"
    outcome, report = end()
    assert "rest-rl failed: it ended without an error: killed (out of memory" in outcome.line
    assert "| ❌ | rest-rl | killed |" in report
    assert status_of(client, tracking, "rest-rl") == "KILLED"
    assert parent(client, tracking).info.status == "FAILED"


def test_a_run_that_ended_between_two_stages_is_closed(
    stage: Any, end: Any, client: MlflowClient, tracking: TrackingConfig
) -> None:
    stage("prepare-data")
    assert parent(client, tracking).info.status == "RUNNING"
    outcome, report = end(FinalStatus(state="CANCELLED"))
    assert outcome.verdict == "stopped" and not outcome.failures
    assert report.startswith("# ⏹ stopped\n")
    assert parent(client, tracking).info.status == "KILLED"


def test_an_attempt_that_went_well_makes_up_for_those_before(stage: Any, end: Any) -> None:
    stage("rest-rl", Preempted("SIGTERM: left after step 3 of 9"))
    stage("rest-rl")
    outcome, _ = end(SUCCEEDED)
    assert outcome.succeeded and [one.status for one in outcome.stages] == ["FINISHED"]


def test_where_kfp_does_not_say_mlflow_does(
    stage: Any, end: Any, client: MlflowClient, tracking: TrackingConfig, tmp_path: Path
) -> None:
    stage("compare-and-register")
    unclear = FinalStatus(state="RUNNING")
    assert not end(unclear)[0].succeeded  # nobody had closed the parent run
    client.set_terminated(parent(client, tracking).info.run_id, "FINISHED")
    assert end(unclear)[0].succeeded


@pytest.mark.parametrize(("state", "verdict"), [("COMPLETE", "succeeded"), ("CANCELED", "stopped"), ("", None)])
def test_the_words_of_kfps_backends(state: str, verdict: str | None) -> None:
    assert FinalStatus(state=state).verdict == verdict


def test_a_parent_run_of_kfps_plugin_is_described_and_left_open(
    stage: Any, end: Any, client: MlflowClient, tracking: TrackingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = store.ensure_experiment(client, str(tracking.uri), "kfp's own")
    theirs = client.create_run(experiment, run_name="of KFP")
    task = client.create_run(experiment, tags={"mlflow.parentRunId": theirs.info.run_id})
    monkeypatch.setenv("MLFLOW_RUN_ID", task.info.run_id)
    stage("rest-rl", UserError("no"))
    outcome, _ = end()
    assert outcome.line == "rest-rl failed: no"
    after = client.get_run(theirs.info.run_id)
    assert (after.info.status, after.data.tags["rest.status"]) == ("RUNNING", outcome.line)


def test_the_pods_tell_what_a_killed_stage_could_not(stage: Any, end: Any, cluster: Any, client: MlflowClient) -> None:
    stage("prepare-data")
    stage("rest-rl", "killed")
    cluster.add_pod("prepare-data", terminated={"exitCode": 0, "reason": "Completed"})
    pod = cluster.add_pod(
        "rest-rl", phase="Failed", terminated={"exitCode": 137, "reason": "OOMKilled"}, log="step 4 of 9\nstep 5 of 9"
    )
    outcome, report = end()
    assert outcome.line == f"rest-rl failed: its pod {pod} ended (OOMKilled, exit code 137)"
    assert outcome.failures[0].log == ("step 4 of 9", "step 5 of 9")
    assert "- KFP: https://kfp.example/pipeline/#/runs/details/run-1" in report


def test_a_pod_that_never_ran_its_stage_is_known_to_kubernetes_alone(stage: Any, end: Any, cluster: Any) -> None:
    stage("prepare-data")
    cluster.add_pod("rest-rl", phase="Failed", waiting={"reason": "ImagePullBackOff"}, log="")
    outcome, _ = end()
    assert [one.stage for one in outcome.failures] == ["rest-rl"]
    assert "ImagePullBackOff" in outcome.line and outcome.failures[0].reproduce == ()


def test_without_rights_and_without_mlflow_the_report_says_so(end: Any, cluster: Any) -> None:
    cluster.forbidden.add("pods")
    outcome, report = end(FAILED, TrackingConfig(uri="http://127.0.0.1:1"))
    assert "Pods and their logs could not be looked at: list pods: the cluster refuses it (403" in report
    assert "MLflow could not be asked: MLflow at http://127.0.0.1:1 does not answer" in report
    assert "kubectl get pods -l pipeline/runid=run-1" in outcome.line


def test_the_scratch_space_of_a_run_goes_when_it_is_needed_no_more(stage: Any, end: Any, tmp_path: Path) -> None:
    storage = StorageConfig(location=str(tmp_path / "store"))
    scratch = Path(handoff.scratch(str(storage.location), RUN))
    (scratch / "checkpoints").mkdir(parents=True)
    (scratch / "checkpoints" / "step-3").touch()
    stage("rest-rl", UserError("no"))
    end(FAILED, storage=storage)
    assert (scratch / "checkpoints" / "step-3").exists()  # for a retry
    end(SUCCEEDED, storage=storage)
    assert not list(scratch.rglob("step-3"))


def test_each_trial_of_an_ablation_has_stages_of_its_own(
    stage: Any, end: Any, client: MlflowClient, tracking: TrackingConfig
) -> None:
    stage("prepare-data")
    experiment = parent(client, tracking).info.experiment_id
    common = {"rest.pipeline_run": RUN, "rest.trial": "paper 1"}
    trial = client.create_run(experiment, tags={**common, "rest.kind": "trial"})
    for name, status in (("paper 0", "FINISHED"), ("paper 1", "FAILED")):
        told = {"rest.stage": "rest-rl", "rest.trial": name, "rest.scheme": name.split()[0]}
        told["rest.scheme_settings"] = "advantage_std,loss.length"
        tags = {**common, "rest.kind": "stage", **told}
        client.set_terminated(client.create_run(experiment, tags=tags).info.run_id, status)
    outcome, report = end()
    assert [one.stage for one in outcome.failures] == ["rest-rl · paper 1"]
    assert "rest train --profile reproduce/config.json --trial paper=advantage_std,loss.length --out" in report
    assert client.get_run(trial.info.run_id).info.status == "FAILED"


def test_what_a_pod_has_printed_is_shown_as_it_is_cut_and_without_credentials(
    end: Any, cluster: Any, stage: Any
) -> None:
    stage("rest-rl", "killed")
    log = b"```\nhttp://user:hush@host/\n" + b"x" * 2_000_000 + b'\n{"json": true}\nhalf a sign \xe2\x82'
    cluster.add_pod("rest-rl", phase="Failed", terminated={"exitCode": 1}, log=log)
    _, report = end()
    block = report.split("The last lines of its log:\n\n")[1].split("To run it again")[0]
    assert len(block) < 3000 and block.rstrip().endswith('{"json": true}\nhalf a sign \ufffd\n```')
    cluster.pods.clear()
    cluster.add_pod("rest-rl", phase="Failed", terminated={"exitCode": 1}, log=log[:27])
    _, report = end()
    assert "````\n```\nhttp://***@host/\n````" in report


def broken(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a defect")


@pytest.mark.parametrize(
    "part", ["rest_core.operations.pods.ends", "rest_core.operations.handoff.storage.delete_folder"]
)
def test_a_defect_in_a_part_of_the_report_is_told_in_it(
    end: Any, cluster: Any, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    stage("rest-rl")
    monkeypatch.setattr(part, broken)
    _, report = end(SUCCEEDED, storage=StorageConfig(location=str(tmp_path / "store")))
    assert "RuntimeError: a defect" in report and "| ✅ | rest-rl | FINISHED |" in report


def test_the_report_is_written_before_anything_is_removed(
    end: Any, stage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    stage("rest-rl", UserError("no"))
    monkeypatch.setattr("rest_core.operations.status.exit_task.remove_leftovers", killed)
    with pytest.raises(KeyboardInterrupt):
        end()
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# ❌ failed in rest-rl")


def test_an_mlflow_without_its_database_is_asked_once(end: Any, http_server: Any) -> None:
    asked, before = [], dict(os.environ)

    def answer(path: str, query: dict[str, str]) -> tuple[int, Any]:
        asked.append((path, os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"]))
        return (200, "OK") if path == "/health" else (503, {})

    _, report = end(FAILED, TrackingConfig(uri=http_server(answer)))
    assert "MLflow could not be asked" in report and [seconds for _, seconds in asked] == ["60"]
    assert os.environ == before


def test_where_nobody_says_how_a_run_ended_it_is_not_known(end: Any, cluster: Any) -> None:
    unclear, away = FinalStatus(state="RUNNING"), TrackingConfig(uri="http://127.0.0.1:1")
    outcome, report = end(unclear, away)
    assert outcome.verdict == "unknown" and report.startswith("# ❔ unknown\n")
    assert outcome.line.startswith("unknown: KFP does not say how the run ended")
    cluster.add_pod("rest-rl", phase="Failed", terminated={"exitCode": 1})
    assert end(unclear, away)[0].verdict == "failed"


def test_the_command_of_a_comparison(client: MlflowClient, tracking: TrackingConfig) -> None:
    inputs = {"000": "/minio/bucket/a b/report", "001": "/minio/bucket/c/report"}
    parameters = {"cfg/ablation/baseline": "paper", "cfg/ablation/metric": "m", "cfg/ablation/confidence": "0.9"}
    one = StageEnd("aggregate", None, "0f", "FAILED", "no", None, 1.0, inputs, None, parameters, "")
    first, second, again = map(shlex.split, commands(one, "http://mlflow:5000"))
    assert first[-4:] == ["--artifact-uri", "s3://bucket/a b/report", "--dst-path", "reproduce/evaluations/000"]
    assert second[-1] == "reproduce/evaluations/001"
    assert again == [
        *("rest", "aggregate", "reproduce/evaluations/000/report", "reproduce/evaluations/001/report"),
        *("--baseline", "paper", "--metric", "m", "--confidence", "0.9", "--out", "reproduce/aggregate"),
    ]


@pytest.mark.parametrize(
    ("uri", "inputs", "note"),
    [
        ("http://mlflow.mlops.svc:5000", {}, "# mlflow.mlops.svc is an address of the cluster"),
        ("http://mlflow:5000", {}, "# mlflow is an address of the cluster"),
        ("https://mlflow.example.com", {"dataset": "/gcs/b/x"}, "# gs://b/x: rest reads folders and s3:// only"),
        ("https://mlflow.example.com", {"dataset": "s3://b/x"}, "export MLFLOW_TRACKING_URI"),
    ],
)
def test_what_a_command_needs_is_said_before_it(uri: str, inputs: dict[str, str], note: str) -> None:
    one = StageEnd("rest-rl", None, "0f", "FAILED", "no", None, 1.0, inputs, None, {}, "")
    assert commands(one, uri)[0].startswith(note)


def test_an_address_of_mlflow_that_is_none_stops_no_report(end: Any) -> None:
    _, report = end(FAILED, TrackingConfig(uri="htp://mlflow:5000"))
    assert "MLflow could not be asked: tracking.uri 'htp://mlflow:5000': unknown scheme" in report


def test_kfps_own_message_is_passed_on(end: Any) -> None:
    told = FinalStatus(state="FAILED", error_message="Task run ended with Argo status Error.", error_code=5.0)
    outcome, report = end(told)
    assert outcome.line == "failed: Task run ended with Argo status Error."
    assert f"MLflow has no run {RUN!r}" in report
    assert report.index(str(told.error_message)) < report.index("MLflow has no run")


def test_a_stages_own_words_come_before_kfps(stage: Any, end: Any) -> None:
    stage("rest-rl", UserError("no"))
    outcome, report = end(FinalStatus(state="FAILED", error_message="Task failed."))
    assert outcome.line == "rest-rl failed: no"
    assert "- KFP says: Task failed." in report


def test_the_stage_leaves_page_figures_and_manifest(
    stage: Any, tracking: TrackingConfig, tmp_path: Path, client: MlflowClient
) -> None:
    stage("rest-rl", UserError("no"))
    out = tmp_path / "status"
    sections: dict[str, Any] = {"tracking": tracking, "storage": StorageConfig(), "launch": LaunchConfig()}
    result = stages.report_status(**sections, links=Links(), final=FAILED, pipeline_run=RUN, out=out)
    assert result.metrics == {"run/succeeded": 0.0}
    assert (out / PAGE_FILE).read_text(encoding="utf-8").startswith("# ❌ failed in rest-rl")
    assert manifest.read(out)["counts"]["outcome"] == "rest-rl failed: no"


def test_locations_that_pods_see_as_folders() -> None:
    assert locate("/gcs/bucket/x") == "gs://bucket/x"
    assert locate("/work/x") == "/work/x"
    assert locate("Qwen/Qwen3-1.7B") == "Qwen/Qwen3-1.7B"


def test_preflight_is_not_run_at_home(stage: Any, end: Any) -> None:
    stage("preflight", UserError("2 problems in 9 checks\n- MLflow: away"))
    outcome, report = end()
    assert outcome.line == "preflight failed: 2 problems in 9 checks - MLflow: away"
    assert "```sh" not in report
    assert commands(outcome.stages[0], "http://mlflow:5000") == []
