"""Policies as MLflow's models, and prompt templates in its registry, in a real store on SQLite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, Run
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from rest_core.config import TrackingConfig
from rest_core.operations.tracking import delivery, logged_models, runs
from rest_core.operations.tracking.prompts import prompt_name
from rest_core.operations.tracking.recorder import Measured, Recorder

TRAINED = "b" * 64


@pytest.fixture
def stage(tracking: TrackingConfig, tmp_path: Path) -> Any:
    """Runs a stage that records what a function does; returns the id of its run."""

    def run_stage(name: str, record: Any) -> str:
        with runs.stage_run(tracking, stage=name, pipeline_run="p", spool=tmp_path / name, parameters={}) as run:
            record(run)
            assert run.wait(60) and run.run_id is not None
            return run.run_id

    return run_stage


def models(client: MlflowClient) -> dict[str, LoggedModel]:
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    return {one.name: one for one in client.search_logged_models([experiment.experiment_id])}


def measured(identity: str, name: str) -> Measured:
    return Measured(identity, name, "bfcl", "c" * 64, ("bfcl/call_accuracy",))


def evaluate(value: float, of: Measured) -> Any:
    def record(run: Recorder) -> None:
        run.dataset("bfcl", source="BFCL", digest_sha256=of.digest_sha256, rows=9, context="evaluation")
        run.summary({"bfcl/call_accuracy": value, "bfcl/count/call_accuracy": 9}, of=of)

    return record


def test_a_model_is_made_by_a_training_and_measured_by_evaluations(client: MlflowClient, stage: Any) -> None:
    training = stage("rest-rl", lambda run: run.made_model(TRAINED, "rest-rl"))
    evaluation = stage("evaluate-bfcl-trained", evaluate(0.5, measured(TRAINED, "smol-rest-rl")))
    (model,) = models(client).values()
    assert (model.name, model.source_run_id, str(model.status)) == ("rest-rl", training, "READY")
    assert model.tags["rest.made_by"] == training
    (metric,) = model.metrics
    assert (metric.key, metric.value, metric.dataset_name) == ("bfcl/call_accuracy", 0.5, "bfcl")
    assert metric.dataset_digest == "c" * 36
    made, used = client.get_run(training), client.get_run(evaluation)
    assert [one.model_id for one in made.outputs.model_outputs] == [model.model_id]
    assert [one.model_id for one in used.inputs.model_inputs] == [model.model_id]
    assert used.data.metrics == {"bfcl/call_accuracy": 0.5, "bfcl/count/call_accuracy": 9}


def test_the_base_model_of_many_pipelines_is_one_model(client: MlflowClient, stage: Any) -> None:
    for number in (1, 2):
        stage(f"evaluate-{number}", evaluate(number / 4, measured("Qwen/Qwen3-1.7B", "Qwen3-1.7B")))
    (model,) = models(client).values()
    assert model.name == "Qwen3-1-7B" and model.source_run_id is None
    assert sorted(metric.value for metric in model.metrics) == [0.25, 0.5]


def test_a_model_is_named_without_credentials(client: MlflowClient, stage: Any) -> None:
    for number in (1, 2):
        source = "s3://key:secret@bucket/model"
        stage(f"evaluate-{number}", evaluate(number / 4, measured(source, source)))
    (model,) = models(client).values()
    assert "secret" not in model.name and model.tags["rest.identity"] == "s3://***@bucket/model"


def test_registered_versions_are_found_by_their_names(client: MlflowClient, stage: Any) -> None:
    stage("rest-rl", lambda run: run.made_model(TRAINED, "rest-rl"))
    (model,) = models(client).values()
    for version in ("3", "3", "4"):
        logged_models.note_version(client, client.get_logged_model(model.model_id), "rest-tool-use", version)
    for number in (3, 4):
        title = f"rest-tool-use version {number}"
        stage(f"evaluate-{number}", evaluate(number / 8, measured(title, title)))
    (model,) = models(client).values()
    known = [{"name": "rest-tool-use", "version": number} for number in (3, 4)]
    assert json.loads(model.tags["mlflow.modelVersions"]) == known
    assert sorted(metric.value for metric in model.metrics) == [0.375, 0.5]


def test_a_model_whose_evaluation_was_sent_first_learns_who_made_it(client: MlflowClient, stage: Any) -> None:
    stage("evaluate", evaluate(0.5, measured(TRAINED, "smol-rest-rl")))
    training = stage("rest-rl", lambda run: run.made_model(TRAINED, "rest-rl"))
    (model,) = models(client).values()
    assert model.tags["rest.made_by"] == training and len(model.metrics) == 1


def test_a_model_that_was_left_pending_becomes_ready(client: MlflowClient, tracking: TrackingConfig) -> None:
    experiment = client.create_experiment("test")
    client.create_logged_model(experiment, name="left", tags={"rest.identity": TRAINED})
    assert str(logged_models.ensure(client, experiment, TRAINED, "left").status) == "READY"


def test_an_output_is_noted_once(client: MlflowClient, stage: Any) -> None:
    def twice(run: Recorder) -> None:
        run.made_model(TRAINED, "rest-rl")
        run.made_model(TRAINED, "rest-rl")

    run: Run = client.get_run(stage("rest-rl", twice))
    assert len(run.outputs.model_outputs) == 1 and len(models(client)) == 1


def test_a_prompt_that_changes_is_a_new_version(client: MlflowClient, stage: Any) -> None:
    texts = ["Call {{ tools }} in {braces}.", "Call {{ tools }} in {braces}.", "Call them."]
    name = prompt_name("prompt style my/own:style (sha256 0123abc)")
    assert name == "rest-prompt-style-my-own-style"
    linked = []
    for number, text in enumerate(texts):
        run_id = stage(f"evaluate-{number}", lambda run, text=text: run.prompt(name, text))
        linked.append(json.loads(client.get_run(run_id).data.tags["mlflow.linkedPrompts"]))
    assert linked == [[{"name": name, "version": version}] for version in ("1", "1", "2")]
    versions = {str(one.version): one.template for one in client.search_prompt_versions(name)}
    assert versions == {"1": texts[0], "2": texts[2]}
    experiment = client.get_experiment_by_name("test")
    assert experiment is not None
    assert client.get_prompt(name).tags["_mlflow_experiment_ids"] == f",{experiment.experiment_id},"


def test_a_model_that_has_a_prompts_name_stays_a_model(client: MlflowClient, stage: Any) -> None:
    client.create_registered_model("rest-mine")
    run_id = stage("evaluate", lambda run: run.prompt("rest-mine", "Call."))
    assert "mlflow.linkedPrompts" not in client.get_run(run_id).data.tags
    assert not client.search_model_versions("name = 'rest-mine'")


def test_what_mlflow_refuses_keeps_no_figure_back(
    client: MlflowClient, stage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise MlflowException("no rights", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(delivery.store, "is_server", lambda uri: True)
    monkeypatch.setattr(delivery.store, "unreachable", lambda uri: None)
    monkeypatch.setattr(delivery.prompts, "link", refused)
    monkeypatch.setattr(delivery.logged_models, "ensure", refused)

    def record(run: Recorder) -> None:
        run.prompt("rest-mine", "Call.")
        run.made_model(TRAINED, "rest-rl")
        evaluate(0.5, measured(TRAINED, "rest-rl"))(run)

    done = client.get_run(stage("rest-rl", record))
    assert done.data.metrics["bfcl/call_accuracy"] == 0.5
    assert done.info.status == "FINISHED"
