"""Evaluations found in a real store on SQLite, by run and by version."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from rest_core.errors import UserError
from rest_core.operations.tracking import evaluations
from rest_core.operations.tracking.tags import KIND_TAG, PIPELINE_RUN_TAG, STAGE_TAG, TRIAL_TAG


class Store:
    """Runs as the stages of pipelines leave them."""

    def __init__(self, client: MlflowClient, place: Path) -> None:
        self.client, self.place = client, place
        self.experiment = client.create_experiment("test", artifact_location=(place / "artifacts").as_uri())

    def run(
        self, pipeline: str, stage: str | None, *files: str, status: str = "FINISHED", trial: str | None = None
    ) -> str:
        kind = "stage" if stage else "pipeline"
        tags = {PIPELINE_RUN_TAG: pipeline, KIND_TAG: kind} | ({STAGE_TAG: stage} if stage else {})
        tags |= {TRIAL_TAG: trial} if trial else {}
        run_id = str(self.client.create_run(self.experiment, tags=tags, run_name=stage or pipeline).info.run_id)
        for name in files:
            (self.place / name).write_text(f"{pipeline} {stage}", encoding="utf-8")
            self.client.log_artifact(run_id, str(self.place / name))
        self.client.set_terminated(run_id, status)
        return run_id

    def version(self, run_id: str) -> str:
        if not self.client.search_registered_models("name = 'tools'"):
            self.client.create_registered_model("tools")
        return str(self.client.create_model_version("tools", self.place.as_uri(), run_id=run_id).version)

    def stage_of(self, text: str, benchmark: str = "bfcl") -> str:
        found = evaluations.find(self.client, text, benchmark)
        return f"{found.run.data.tags[PIPELINE_RUN_TAG]} {found.run.data.tags[STAGE_TAG]}"


@pytest.fixture
def made(client: MlflowClient, tmp_path: Path) -> Store:
    return Store(client, tmp_path)


BOTH = ("report.json", "rows.jsonl")


def test_an_evaluations_run_is_taken_as_it_is(made: Store, tmp_path: Path) -> None:
    run = made.run("a", "evaluate-api-bank", *BOTH)
    found = evaluations.find(made.client, run, "bfcl")
    assert found.name == f"evaluate-api-bank {run[:8]}"
    directory = evaluations.download(made.client, found, tmp_path / "new" / "copy")
    assert sorted(path.name for path in directory.iterdir()) == list(BOTH)
    assert (directory / "rows.jsonl").read_text(encoding="utf-8") == "a evaluate-api-bank"


def test_a_pipelines_run_stands_for_the_trained_policy(made: Store) -> None:
    for pipeline in ("a", "b"):
        for stage in ("evaluate-bfcl-base", "evaluate-bfcl-trained", "evaluate-api-bank-trained"):
            made.run(pipeline, stage, *BOTH)
    made.run("b", "evaluate-bfcl-trained", status="FAILED")
    for pipeline in ("a", "b"):
        assert made.stage_of(made.run(pipeline, None)) == f"{pipeline} evaluate-bfcl-trained"
    assert made.stage_of(made.run("b", "rest-rl"), "api_bank") == "b evaluate-api-bank-trained"


def test_a_version_has_the_evaluations_that_it_was_registered_with(made: Store, tmp_path: Path) -> None:
    register = made.run("a", "compare-and-register")
    for benchmark, policy in (("bfcl", None), ("bfcl", "base"), ("api_bank", None)):
        for name in BOTH:
            (tmp_path / name).write_text(f"{benchmark} {policy}", encoding="utf-8")
            place = evaluations.artifact_directory(benchmark, policy)
            made.client.log_artifact(register, str(tmp_path / name), place)
    number = made.version(register)
    made.client.set_registered_model_alias("tools", "champion", number)
    for text in (f"models:/tools/{number}", "models:/tools@champion", "tools@champion"):
        assert evaluations.is_reference(text)
        found = evaluations.find(made.client, text, "bfcl")
        assert found.name == f"tools version {number}"
        directory = evaluations.download(made.client, found, tmp_path / "copy")
        assert (directory / "rows.jsonl").read_text(encoding="utf-8") == "bfcl None"
    version = made.client.get_model_version("tools", number)
    base = evaluations.of_version(made.client, version, "bfcl", "base")
    directory = evaluations.download(made.client, base, tmp_path / "copy")
    assert (directory / "report.json").read_text(encoding="utf-8") == "bfcl base"
    with pytest.raises(UserError, match=r"has no evaluations/api_bank-base/report\.json \(not evaluated"):
        none = evaluations.of_version(made.client, version, "api_bank", "base")
        evaluations.download(made.client, none, tmp_path)


def test_a_pipeline_with_one_evaluation_a_benchmark(made: Store) -> None:
    made.run("a", "evaluate-bfcl", *BOTH)
    assert made.stage_of(made.run("a", "rest-rl")) == "a evaluate-bfcl"


def test_of_an_ablation_a_trial_stands_for_its_policy_and_the_whole_for_none(made: Store) -> None:
    evaluated = {trial: made.run("a", "evaluate-bfcl-trained", trial=trial) for trial in ("paper", "uniform")}
    trained = made.run("a", "rest-rl", trial="paper")
    assert evaluations.find(made.client, trained, "bfcl").run.info.run_id == evaluated["paper"]
    with pytest.raises(UserError, match="an ablation has a policy per trial; give the run of a trial"):
        evaluations.find(made.client, made.run("a", None), "bfcl")


@pytest.mark.parametrize("text", ["runs/base", "runs/3", "a" * 31, "https://x/y@z", ""])
def test_other_texts_are_no_references(text: str) -> None:
    assert not evaluations.is_reference(text)


def test_what_is_not_there_is_named(made: Store, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run a{32}: .*; check the id"):
        evaluations.find(made.client, "a" * 32, "bfcl")
    with pytest.raises(UserError, match="no registered model 'tool'"):
        evaluations.find(made.client, "tool@champion", "bfcl")
    run = made.run("a", "rest-rl")
    with pytest.raises(UserError, match="no finished evaluate-bfcl in its pipeline run 'a'"):
        evaluations.find(made.client, run, "bfcl")
    old = evaluations.find(made.client, made.run("a", "evaluate-bfcl", "report.json"), "bfcl")
    with pytest.raises(UserError, match=r"has no rows\.jsonl \(not evaluated, or made by an older version\)"):
        evaluations.download(made.client, old, tmp_path / "copy")
