"""Trials of an ablation in a real MLflow store on SQLite, sent from this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import journal
from rest_core.operations.tracking.delivery import Replay, deliver
from rest_core.operations.tracking.journal import State
from rest_core.operations.tracking.runs import Recorder, TrialRun, finish_pipeline, stage_run

PAPER = TrialRun("paper · seed 0", {"rest.scheme": "paper", "rest.seed": "0"})
UNIFORM = TrialRun("uniform · seed 0", {"rest.scheme": "uniform", "rest.seed": "0"})


class Stages:
    """Stages of the pipeline run "abl", each sent when it has ended."""

    def __init__(self, tracking: TrackingConfig, folder: Path) -> None:
        self._tracking, self._folder, self.uri = tracking, folder, str(tracking.uri)

    def run(
        self,
        stage: str,
        trial: TrialRun | None = None,
        *,
        error: str | None = None,
        metrics: dict[str, float] | None = None,
    ) -> Path:
        spool = self._folder / f"{stage} {trial.name if trial else ''}"
        try:
            with self.open(stage, trial, spool) as run:
                run.summary(metrics or {}, on_parent=metrics or ())
                if error:
                    raise RuntimeError(error)
        except RuntimeError:
            pass
        deliver(spool, self.uri)
        return spool

    def open(self, stage: str, trial: TrialRun | None, spool: Path, **parameters: Any) -> Any:
        return stage_run(
            self._tracking, stage=stage, pipeline_run="abl", spool=spool, parameters=parameters, trial=trial
        )

    def finish(self) -> None:
        finish_pipeline(self._tracking, pipeline_run="abl", spool=self._folder / "finish")
        deliver(self._folder / "finish", self.uri)


@pytest.fixture
def stages(tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stages:
    class Idle:  # the process that sends takes seconds to start
        def __init__(self, *_: Any) -> None: ...

        def finish(self) -> bool:
            return True

    monkeypatch.setattr("rest_core.operations.tracking.runs.Sender", Idle)
    return Stages(tracking, tmp_path)


def by_name(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_trials_stand_side_by_side_between_the_ablation_and_its_stages(stages: Stages, client: MlflowClient) -> None:
    stages.run("prepare-data", metrics={"data/rl": 13})
    for trial, reward in ((PAPER, 2.0), (UNIFORM, 1.0)):
        stages.run("rest-rl", trial, metrics={"reward/after": reward})
        stages.run("evaluate-bfcl", trial, metrics={"bfcl/call_accuracy": reward / 10})
    stages.run("aggregate")
    stages.finish()
    runs = by_name(client)
    assert set(runs) == {
        "abl",
        "prepare-data",
        "aggregate",
        "paper · seed 0",
        "uniform · seed 0",
        *(f"{stage} · {trial.name}" for stage in ("rest-rl", "evaluate-bfcl") for trial in (PAPER, UNIFORM)),
    }
    parent = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    names = {run.info.run_id: name for name, run in runs.items()}
    assert names[parent["prepare-data"]] == names[parent["paper · seed 0"]] == "abl"
    assert names[parent["rest-rl · paper · seed 0"]] == "paper · seed 0"
    assert runs["paper · seed 0"].data.metrics == {"reward/after": 2.0, "bfcl/call_accuracy": 0.2}
    assert runs["uniform · seed 0"].data.metrics == {"reward/after": 1.0, "bfcl/call_accuracy": 0.1}
    assert runs["abl"].data.metrics == {"data/rl": 13}  # trials do not replace each other's figures there
    for name in ("paper · seed 0", "rest-rl · paper · seed 0"):
        tags = runs[name].data.tags
        assert (tags["rest.scheme"], tags["rest.seed"], tags["rest.pipeline_run"]) == ("paper", "0", "abl")
    assert (runs["paper · seed 0"].data.tags["rest.kind"], runs["abl"].data.tags["rest.kind"]) == ("trial", "pipeline")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_parameters_of_trials_do_not_conflict(stages: Stages, client: MlflowClient, tmp_path: Path) -> None:
    for trial, scheme in ((PAPER, "paper"), (UNIFORM, "uniform")):
        spool = tmp_path / scheme
        with stages.open("rest-rl", trial, spool, rl={"weights": scheme}):
            pass
        assert deliver(spool, stages.uri).refused == 0
    runs = by_name(client)
    assert runs["paper · seed 0"].data.params["cfg/rl/weights"] == "paper"
    assert runs["uniform · seed 0"].data.params["cfg/rl/weights"] == "uniform"


def test_a_trial_runs_as_long_as_one_of_its_stages(stages: Stages, client: MlflowClient, tmp_path: Path) -> None:
    def status() -> str:
        return str(by_name(client)["paper · seed 0"].info.status)

    stages.run("rest-rl", PAPER)
    assert status() == "FINISHED"
    with stages.open("evaluate-bfcl", PAPER, tmp_path / "open") as run:
        assert isinstance(run, Recorder)
        deliver_unlocked(tmp_path / "open", stages.uri)
        assert status() == "RUNNING"
        stages.run("evaluate-api-bank", PAPER)
        assert status() == "RUNNING"
    deliver(tmp_path / "open", stages.uri)
    assert status() == "FINISHED"


def deliver_unlocked(spool: Path, uri: str) -> None:
    """Send what an open stage has recorded so far, as its sender does."""
    (path,) = journal.find(spool)
    Replay(path, uri).run()


def test_a_failed_stage_fails_its_trial_and_the_ablation_until_it_succeeds(
    stages: Stages, client: MlflowClient
) -> None:
    stages.run("rest-rl", PAPER, error="out of memory")
    stages.run("rest-rl", UNIFORM)
    runs = by_name(client)
    status = {name: runs[name].info.status for name in ("abl", "paper · seed 0", "uniform · seed 0")}
    assert status == {"abl": "FAILED", "paper · seed 0": "FAILED", "uniform · seed 0": "FINISHED"}
    assert runs["abl"].data.tags["rest.error/rest-rl paper seed 0"] == "RuntimeError: out of memory"
    assert runs["paper · seed 0"].data.tags["rest.error/rest-rl"] == "RuntimeError: out of memory"

    stages.run("rest-rl", PAPER)
    runs = by_name(client)
    status = {name: runs[name].info.status for name in ("abl", "paper · seed 0")}
    assert status == {"abl": "RUNNING", "paper · seed 0": "FINISHED"}
    assert not [tag for name in status for tag in runs[name].data.tags if tag.startswith("rest.error")]
    assert "rest-rl · paper · seed 0 (attempt 2)" in runs


def test_sending_a_trial_twice_changes_nothing(stages: Stages, client: MlflowClient) -> None:
    (path,) = journal.find(stages.run("rest-rl", PAPER, metrics={"reward/after": 2.0}))
    state = State.read(path)
    State().write(path)  # as if the process had died before it noted what was sent
    deliver(path, stages.uri)
    assert State.read(path) == state
    runs = by_name(client)
    assert len(runs) == 3
    assert runs["paper · seed 0"].info.status == "FINISHED"


def test_in_a_run_of_kfps_the_trials_run_is_ours(
    stages: Stages, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("test")
    outer = client.create_run(experiment, run_name="kfp").info.run_id
    inner = client.create_run(experiment, run_name="task", tags={"mlflow.parentRunId": outer}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", inner)
    stages.run("rest-rl", PAPER, metrics={"reward/after": 2.0}, error="boom")
    runs = by_name(client)
    trial = runs["paper · seed 0"]
    assert trial.data.tags["mlflow.parentRunId"] == outer
    assert (trial.data.metrics, trial.info.status) == ({"reward/after": 2.0}, "FAILED")
    assert runs["task"].data.metrics == {"reward/after": 2.0}
    assert (runs["task"].info.status, runs["kfp"].info.status) == ("RUNNING", "RUNNING")  # whoever made them ends them
    assert runs["task"].data.tags["rest.trial"] == "paper · seed 0"


def test_an_artifact_on_the_parent(stages: Stages, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("<p>")
    with stages.open("aggregate", None, tmp_path / "s") as run:
        run.artifact(tmp_path / "report.html", to="pipeline")
    deliver(tmp_path / "s", stages.uri)
    runs = by_name(client)
    assert [one.path for one in client.list_artifacts(runs["abl"].info.run_id)] == ["report.html"]
    assert [one.path for one in client.list_artifacts(runs["aggregate"].info.run_id)] == ["config.json"]
