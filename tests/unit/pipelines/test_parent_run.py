"""The run in MLflow of a local run: ended whatever happens to the process, and open again when it is resumed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import parent_run
from rest_core.config import TrackingConfig
from rest_core.operations.tracking import journal, store
from rest_core.operations.tracking.delivery import deliver
from rest_core.operations.tracking.runs import OpenPipeline, TrialRun, finish_pipeline, stage_run

TRIAL = TrialRun("paper · seed 0", {"rest.scheme": "paper", "rest.seed": "0"})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "artifacts"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def client(tracking: TrackingConfig) -> MlflowClient:
    return store.open_client(str(tracking.uri))


def statuses(client: MlflowClient) -> dict[str, str]:
    experiment = client.get_experiment_by_name("test")
    if experiment is None:
        return {}
    return {run.info.run_name: run.info.status for run in client.search_runs([experiment.experiment_id])}


def stage(tracking: TrackingConfig, root: Path, name: str, trial: TrialRun | None = None) -> None:
    spool = root / "p-1" / name / "out.tracking"
    with stage_run(tracking, stage=name, pipeline_run="p", spool=spool, parameters={}, trial=trial):
        pass


def killed(tracking: TrackingConfig, root: Path, body: str = "", *, resumed: bool = False) -> None:
    """A process that has opened the run, and is killed whole after `body`."""
    code = f"""
import os, signal
from pathlib import Path
from pipelines import parent_run
from rest_core.config import TrackingConfig
from rest_core.operations.tracking.runs import TrialRun, stage_run
tracking, root = TrackingConfig(uri={tracking.uri!r}, experiment="test"), Path({str(root)!r})
parent = parent_run.begin(tracking, root, "p", resumed={resumed})
{body}
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL


def sync(tracking: TrackingConfig, root: Path) -> None:
    done = deliver(root.parent, str(tracking.uri))  # `rest sync FOLDER`
    assert (done.left, done.refused) == (0, 0)


def test_a_run_that_is_killed_between_two_stages_is_ended_and_resumed(
    tracking: TrackingConfig, client: MlflowClient, root: Path
) -> None:
    stage(tracking, root, "prepare-data")
    killed(tracking, root)
    assert statuses(client) == {"p": "RUNNING", "prepare-data": "FINISHED"}
    sync(tracking, root)
    assert statuses(client) == {"p": "KILLED", "prepare-data": "FINISHED"}
    parent = parent_run.begin(tracking, root, "p", resumed=True)
    assert statuses(client)["p"] == "RUNNING"
    stage(tracking, root, "rest-rl")
    finish_pipeline(tracking, pipeline_run="p", spool=root / "p-1" / "last" / "out.tracking")
    parent_run.end(parent, tracking, root, "succeeded")
    sync(tracking, root)
    assert set(statuses(client).values()) == {"FINISHED"}
    assert not (root.parent / parent_run.SPOOL).exists()


def test_a_run_that_is_killed_in_a_stage_of_a_trial_is_ended_whole(
    tracking: TrackingConfig, client: MlflowClient, root: Path
) -> None:
    body = """
trial = TrialRun("paper · seed 0", {"rest.scheme": "paper", "rest.seed": "0"})
spool = root / "p-1" / "rest-rl" / "out.tracking"
stage = stage_run(tracking, stage="rest-rl", pipeline_run="p", spool=spool, parameters={}, trial=trial)
stage.__enter__().wait(60)
"""
    killed(tracking, root, body)
    assert set(statuses(client).values()) == {"RUNNING"}
    sync(tracking, root)
    ended = {"p": "FAILED", "paper · seed 0": "FAILED", "rest-rl · paper · seed 0": "KILLED"}
    assert statuses(client) == ended
    parent = parent_run.begin(tracking, root, "p", resumed=True)
    stage(tracking, root, "rest-rl", TRIAL)
    finish_pipeline(tracking, pipeline_run="p", spool=root / "p-1" / "last" / "out.tracking")
    parent_run.end(parent, tracking, root, "succeeded")
    found = statuses(client)
    assert found.pop("rest-rl · paper · seed 0") == "KILLED"
    assert set(found.values()) == {"FINISHED"}


def test_a_run_that_is_resumed_ends_what_a_killed_stage_has_left_before(
    tracking: TrackingConfig, client: MlflowClient, root: Path
) -> None:
    """The stage may not start again: its settings have changed. Nobody has called `rest sync`."""
    body = """
spool = root / "p-1" / "sft-warmup" / "out.tracking"
stage = stage_run(tracking, stage="sft-warmup", pipeline_run="p", spool=spool, parameters={})
stage.__enter__().wait(60)
"""
    killed(tracking, root, body)
    killed(tracking, root, resumed=True)
    assert statuses(client) == {"p": "RUNNING", "sft-warmup": "KILLED"}
    sync(tracking, root)
    assert "RUNNING" not in statuses(client).values()


def test_a_run_whose_last_stage_has_ended_it_stays_so(
    tracking: TrackingConfig, client: MlflowClient, root: Path
) -> None:
    stage(tracking, root, "prepare-data")
    finish_pipeline(tracking, pipeline_run="p", spool=root / "p-1" / "last" / "out.tracking")
    killed(tracking, root)
    sync(tracking, root)
    assert statuses(client)["p"] == "FINISHED"


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_a_run_that_ends_before_its_time_is_ended(
    tracking: TrackingConfig, client: MlflowClient, root: Path, status: parent_run.RunStatus, shown: str
) -> None:
    parent = parent_run.begin(tracking, root, "p", resumed=False)
    stage(tracking, root, "prepare-data")
    parent_run.end(parent, tracking, root, status)
    assert statuses(client) == {"p": shown, "prepare-data": "FINISHED"}


def test_a_run_of_which_no_stage_has_begun_leaves_nothing(
    tracking: TrackingConfig, client: MlflowClient, root: Path
) -> None:
    parent_run.end(parent_run.begin(tracking, root, "p", resumed=False), tracking, root, None)
    assert statuses(client) == {} and not journal.find(root.parent)


def test_what_an_earlier_run_of_the_same_folder_has_not_sent_is_not_thrown_away(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    """`rest prepare --out DIR`, twice: the end of the first run waits for MLflow, the second one fails."""
    for name in ("first", "second"):
        parent = OpenPipeline(tracking, pipeline_run=name, spool=tmp_path / "out.finish.tracking")
        if name == "first":  # as if MLflow had been away
            parent._records.append("end", status="FINISHED", error=None)
            parent._records.close()
        else:
            parent.discard()
    assert deliver(tmp_path, str(tracking.uri)).left == 0
    assert statuses(client) == {"first": "FINISHED"}
