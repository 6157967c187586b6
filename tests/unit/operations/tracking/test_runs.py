"""Stage runs through the real sender process into a real store on SQLite."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.entities import Run

from rest_core.config import ModelConfig, RlConfig, TrackingConfig
from rest_core.errors import Preempted, UserError
from rest_core.operations.tracking import delivery, journal, recorder, runs


def by_name(client: MlflowClient) -> dict[str, Run]:
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_a_pipeline_run_of_two_stages(tracking: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    secret = ModelConfig.model_construct(source="s3://key:pw@bucket/model")  # as an older record has it
    with runs.stage_run(
        tracking, stage="train", pipeline_run="p", spool=tmp_path / "a", parameters={"rl": RlConfig(), "model": secret}
    ) as run:
        run.metrics({"loss": math.nan, "bad,name": 1.0}, step=3)
        run.summary({"reward/after": 0.5, "rl/steps": 3.0}, on_parent={"reward/after"})
        run.dataset("train", source="hub/x", digest_sha256="a" * 64, rows=5, context="training")
        for split in ("sft", "rl"):
            run.dataset(
                split,
                source="hub/x",
                digest_sha256="a" * 64,
                rows=2,
                context="training",
                split=split,
                columns={"id": "string", "tokens": "long"},
            )
        run.table([{"a": 1, "b": math.inf}, {"b": {"c": [1]}}], "../rows")
        run.figure(Figure(), "curve")
        (tmp_path / "note.txt").write_text("hello")
        run.artifact(tmp_path / "note.txt", "notes")
        assert run.wait(30)
        assert run.run_id is not None
    runs.finish_pipeline(tracking, pipeline_run="p", spool=tmp_path / "b", description="**done**")
    found = by_name(client)
    stage, parent = found["train"], found["p"]
    assert (stage.info.status, parent.info.status) == ("FINISHED", "FINISHED")
    assert stage.data.params["cfg/rl/weights/scheme"] == "paper"
    assert parent.data.params["cfg/model/source"] == "s3://***@bucket/model"
    assert math.isnan(stage.data.metrics["loss"])
    assert stage.data.metrics["bad_name"] == 1.0
    assert stage.data.tags["rest.non_finite"] == "loss at step 3: nan"
    assert parent.data.metrics == {"reward/after": 0.5}
    assert parent.data.tags["mlflow.note.content"] == "**done**"
    assert stage.data.tags["data/train/sha256"] == "a" * 64
    assert stage.inputs is not None
    inputs = {one.dataset.name: one.dataset for one in stage.inputs.dataset_inputs}
    assert inputs["train"].digest == "a" * 36 and not inputs["train"].schema
    assert len({one.digest for one in inputs.values()}) == 3  # MLflow tells datasets apart by them
    columns = json.loads(inputs["rl"].schema)["mlflow_colspec"]
    assert columns == [{"name": "id", "type": "string"}, {"name": "tokens", "type": "long"}]
    assert stage.data.tags["data/rl/sha256"] == stage.data.tags["data/train/sha256"] == "a" * 64
    folders = {
        one.path
        for name in (None, "tables", "figures", "notes")
        for one in client.list_artifacts(stage.info.run_id, name)
    }
    assert {"config.json", "tables/_rows.json", "figures/curve.png", "notes/note.txt"} <= folders
    table = json.loads(Path(client.download_artifacts(stage.info.run_id, "tables/_rows.json")).read_text())
    assert table == {"columns": ["a", "b"], "data": [[1, "Infinity"], [None, '{"c": [1]}']]}
    assert "pw" not in (tmp_path / "a" / "001" / journal.JOURNAL).read_text()


def test_an_exception_ends_both_runs_as_failed(tracking: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="bad"),
        runs.stage_run(tracking, stage="train", pipeline_run="p", spool=tmp_path / "a", parameters={}),
    ):
        raise ValueError("bad\nthing at http://u:pw@host")
    found = by_name(client)
    line = "ValueError: bad thing at http://***@host"
    assert (found["train"].info.status, found["train"].data.tags["rest.error"]) == ("FAILED", line)
    assert (found["p"].info.status, found["p"].data.tags["rest.error/train"]) == ("FAILED", line)


def test_a_stage_that_was_told_to_stop_is_shown_as_killed_and_may_go_on(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"stage": "train", "pipeline_run": "p", "spool": tmp_path / "a", "parameters": {}}
    with pytest.raises(Preempted), runs.stage_run(tracking, **arguments):
        raise Preempted("SIGTERM: left after step 3 of 9")
    found = by_name(client)
    assert found["train"].info.status == "KILLED"
    assert found["train"].data.tags["rest.error"] == "SIGTERM: left after step 3 of 9"
    with runs.stage_run(tracking, **arguments):
        pass
    found = by_name(client)
    assert found["train (attempt 2)"].info.status == "FINISHED"
    assert found["p"].info.status == "RUNNING" and "rest.error/train" not in found["p"].data.tags


def test_attempts_that_join_one_run_record_each_step_once(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = client.create_experiment("test")
    parent = client.create_run(experiment, run_name="KFP's pipeline").info.run_id
    given = client.create_run(experiment, run_name="KFP's task", tags={"mlflow.parentRunId": parent}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    arguments: dict[str, Any] = {"stage": "train", "pipeline_run": "p", "spool": tmp_path / "a", "parameters": {}}
    with pytest.raises(Preempted), runs.stage_run(tracking, **arguments) as run:
        run.metrics({"loss": 1.0}, 1)
        run.metrics({"loss": 2.0}, 2)
        raise Preempted("SIGTERM")
    with runs.stage_run(tracking, **arguments) as run:  # from step 1 on, and what was evaluated there
        for step in (1, 2, 3):
            run.metrics({"loss": float(step)}, step)
        run.metrics({"accuracy": 0.5}, 1)
        assert run.wait(30) and run.run_id == given
    history = client.get_metric_history(given, "loss")
    assert sorted((point.step, point.value) for point in history) == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [point.step for point in client.get_metric_history(given, "accuracy")] == [1]


@pytest.mark.parametrize("seconds", [0.0, 1.2, 2.7])
def test_a_stage_that_is_killed_at_any_moment_loses_no_record_and_repeats_none(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path, seconds: float
) -> None:
    code = f"""
import itertools, time
from pathlib import Path
from rest_core.config import TrackingConfig
from rest_core.operations.tracking.runs import stage_run
tracking = TrackingConfig(uri={tracking.uri!r}, experiment="test")
with stage_run(tracking, stage="train", pipeline_run="p", spool=Path({str(tmp_path / "a")!r}), parameters={{}}) as run:
    for step in itertools.count(1):
        run.metrics({{"loss": 1 / step}}, step=step)
        if step % 10 == 0:
            run.table([{{"step": step}}], f"rows {{step}}")
        print(step, flush=True)
        time.sleep(0.01)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        time.sleep(seconds)
        process.kill()
        steps = [1, *(int(line) for line in process.stdout.read().split())]
    assert delivery.deliver(tmp_path / "a", str(tracking.uri)).left == 0
    run = by_name(client)["train"]
    recorded = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
    assert len(recorded) - len(steps) in (0, 1)  # the last may have been recorded and not printed
    assert sorted(recorded) == list(range(1, len(recorded) + 1))
    assert len(client.list_artifacts(run.info.run_id, "tables")) - len(steps) // 10 in (0, 1)
    assert run.info.status == "KILLED"
    assert "killed" in run.data.tags["rest.error"]


def test_a_server_that_never_answers_costs_a_bounded_wait_and_a_message(
    tracking: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    before = dict(os.environ)
    monkeypatch.setattr(runs, "GRACE_SECONDS", 1.0)
    away = TrackingConfig(uri="http://127.0.0.1:9", experiment="test")
    with runs.stage_run(away, stage="train", pipeline_run="p", spool=tmp_path / "a", parameters={}) as run:
        run.metrics({"loss": 1.0}, step=1)
        assert run.run_id is None
        assert not run.wait(0.1)
    assert dict(os.environ) == before
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 2, warnings
    assert "does not take records (Connection refused)" in warnings[0]
    assert f"rest sync {tmp_path / 'a'}" in warnings[1]
    done = delivery.deliver(tmp_path, str(away.uri))
    assert (done.sent, done.left, done.refused, done.problem) == (0, 6, 0, "Connection refused")


@pytest.mark.parametrize("name", ["", "it's", 'a"b', "a\nb", "x" * 300])
def test_names_that_cannot_be_searched_for_are_refused(tracking: TrackingConfig, tmp_path: Path, name: str) -> None:
    with (
        pytest.raises(UserError, match="pipeline run"),
        runs.stage_run(tracking, stage="s", pipeline_run=name, spool=tmp_path / "a", parameters={}),
    ):
        pass
    assert not (tmp_path / "a").exists()


def test_a_new_pipeline_runs_name_says_what_ran() -> None:
    name = runs.new_pipeline_run("quickstart", "paper")
    assert re.fullmatch(r"quickstart · paper · \d{4}-\d\d-\d\d \d\d:\d\d · [0-9a-f]{4}", name)


def test_long_values_are_cut_in_params_and_whole_in_the_artifact(
    tracking: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    with runs.stage_run(
        tracking, stage="s", pipeline_run="p", spool=tmp_path / "a", parameters={"prompt": "x" * 10_000}
    ) as run:
        assert run.wait(30)
    assert run.run_id is not None
    assert len(client.get_run(run.run_id).data.params["cfg/prompt"]) == recorder.MAX_PARAM_VALUE
    whole = json.loads(Path(client.download_artifacts(run.run_id, "config.json")).read_text())
    assert whole == {"prompt": "x" * 10_000}


@pytest.mark.parametrize(
    ("arguments", "variable", "source"),
    [
        (["/x/.venv/bin/rest", "train", "--out", "o"], None, "rest train"),
        (["/kfp/executor_main.py", "--x"], "rest run", "rest run"),
        (["/kfp/executor_main.py"], None, "KFP"),
        (["mine.py", "a"], "rest run", "mine.py"),
    ],
)
def test_the_source_is_the_command_that_a_person_gave(
    arguments: list[str], variable: str | None, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delenv(runs.SOURCE_VARIABLE, raising=False)
    if variable is not None:
        monkeypatch.setenv(runs.SOURCE_VARIABLE, variable)
    assert runs._common_tags()["mlflow.source.name"] == source
