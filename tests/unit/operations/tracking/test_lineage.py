"""The way back from a version, in a real registry on SQLite, to runs, files and hashes that are really there."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from counting_benchmark import Counting, Scripted, ids
from mlflow import MlflowClient

from rest_core import manifest
from rest_core.config import RegistryConfig
from rest_core.evaluation.evaluate import evaluate
from rest_core.operations.tracking import registry
from rest_core.operations.tracking.card import DataFact, ModelFacts
from rest_core.operations.tracking.evaluations import artifact_directory
from rest_core.operations.tracking.lineage import lineage
from rest_core.operations.tracking.runs import PIPELINE_FILE_TAG, PIPELINE_SHA_TAG
from rest_core.operations.tracking.tags import INPUT_TAG, KIND_TAG, PIPELINE_RUN_TAG, STAGE_TAG

RUN, COMMIT = "quickstart · paper", "c0ffee"


@dataclass
class Made:
    """A version, and what it was made of."""

    client: MlflowClient
    version: str
    checkpoint: Path
    data: Path
    pipeline: Path
    training: str
    register: str

    def problems(self) -> dict[str, str]:
        links = lineage(self.client, registry.get_version(self.client, "tools", self.version))
        return {link.name: link.problem for link in links if link.problem}


@pytest.fixture
def made(client: MlflowClient, checkpoint: Path, tmp_path: Path) -> Made:
    checkpoint = shutil.copytree(checkpoint, tmp_path / "trained")  # a version shares its blocks
    experiment = client.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())

    def run(kind: str, **tags: str) -> str:
        common = {PIPELINE_RUN_TAG: RUN, KIND_TAG: kind, "mlflow.source.git.commit": COMMIT}
        made: str = client.create_run(experiment, tags=common | tags).info.run_id
        client.set_terminated(made, "FINISHED")
        return made

    data = tmp_path / "data"
    data.mkdir()
    (data / "rows").write_text("content", encoding="utf-8")
    digest = str(manifest.write(data, stage="prepare-data", config={}, inputs={}, counts={})["sha256"])
    pipeline = tmp_path / "pipeline.yaml"
    pipeline.write_text("spec", encoding="utf-8")
    spec = {PIPELINE_FILE_TAG: str(pipeline), PIPELINE_SHA_TAG: hashlib.sha256(b"spec").hexdigest()}
    run("pipeline", **spec)
    run("stage", **{STAGE_TAG: "sft-warmup"})
    read = {f"{INPUT_TAG}dataset": str(data), "data/rl/sha256": digest}
    training = run("stage", **{STAGE_TAG: "rest-rl"}, **read)
    register = run("stage", **{STAGE_TAG: "compare-and-register"})
    evaluate(Counting(), Scripted("trained", ids("easy", 1)), out=tmp_path / "report")
    client.log_artifacts(register, str(tmp_path / "report"), artifact_directory("bfcl"))
    facts = ModelFacts("base", RUN, {}, {}, (DataFact("prepared", "x", digest, 1),), {}, COMMIT)
    found = registry.register_model(
        client, RegistryConfig(name="tools"), checkpoint=checkpoint, run_id=register, facts=facts
    )
    place = Path(urlsplit(found.location).path)
    return Made(client, found.version, place, data, pipeline, training, register)


def test_a_whole_lineage(made: Made) -> None:
    links = lineage(made.client, registry.get_version(made.client, "tools", made.version))
    assert [link.name for link in links] == [
        *("version", "checkpoint", "evaluation", "training run", "data", "code", "image", "pipeline")
    ]
    assert made.problems() == {}
    assert made.training in links[3].found and str(made.data) in links[4].found and links[5].found == COMMIT


def test_what_was_changed_or_removed_is_named(made: Made) -> None:
    (made.checkpoint / "model.safetensors").write_bytes(b"other")
    (made.data / "rows").write_text("other", encoding="utf-8")
    made.pipeline.write_text("other", encoding="utf-8")
    assert made.problems() == {
        "checkpoint": "is not what was registered (SHA-256 differs)",
        "data": "is not what was trained on (SHA-256 differs)",
        "pipeline": "has changed",
    }
    made.pipeline.unlink()
    (made.data / "manifest.json").unlink()
    (made.checkpoint / "model.safetensors").unlink()
    problems = made.problems()
    assert problems["pipeline"] == problems["data"] == "is not on this machine any more"
    assert "model.safetensors" in problems["checkpoint"] or "missing" in problems["checkpoint"]


@pytest.mark.parametrize(
    ("tag", "value", "problem"),
    [
        ("git_commit", "another", {"code": f"the training ran at commit {COMMIT}"}),
        ("data/prepared/sha256", "0" * 64, {"data": "the training read other data than the version names"}),
        (
            "image",
            "rest-train:0.1.0",
            {"image": "has no digest, so that it may be another one by now"},
        ),
        (registry.CHECKPOINT_TAG, "0" * 64, {"checkpoint": "is not what was registered (SHA-256 differs)"}),
    ],
)
def test_what_was_recorded_otherwise_is_named(made: Made, tag: str, value: str, problem: dict[str, str]) -> None:
    made.client.set_model_version_tag("tools", made.version, tag, value)
    assert made.problems() == problem


def test_a_training_that_is_not_in_the_store_is_named(made: Made) -> None:
    made.client.set_tag(made.training, "rest.skipped", "off")
    assert "training run" not in made.problems()  # the warm-up is
    made.client.set_model_version_tag("tools", made.version, "pipeline_run", "gone")
    problems = made.problems()
    assert problems["training run"] == "its pipeline run has no finished training in MLflow"
    assert problems["data"] == "where it lay was not recorded"
    assert problems["pipeline"] == "its YAML was not kept"


def test_a_version_without_anything(client: MlflowClient, tmp_path: Path) -> None:
    client.create_registered_model("tools")
    version: Any = client.create_model_version("tools", tmp_path.as_uri())
    problems = {link.name for link in lineage(client, version) if link.problem}
    assert problems == {"checkpoint", "evaluation", "training run", "data", "code", "pipeline"}
