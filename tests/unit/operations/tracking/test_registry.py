"""Registration in a real registry on SQLite, with a tiny real checkpoint."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from rest_core.config import RegistryConfig, validate
from rest_core.errors import UserError
from rest_core.model.loading import save_policy
from rest_core.operations import pods
from rest_core.operations.tracking import registry
from rest_core.operations.tracking.card import DataFact, ModelFacts, Sample, model_card

NAME = "rest-tool-use"
METRIC = "bfcl/call_accuracy"


def facts(value: float | None = 0.5, **more: object) -> ModelFacts:
    base = ModelFacts(
        base_model="https://u:pw@hub/base",
        pipeline_run="quickstart · paper",
        metrics={} if value is None else {METRIC: value},
        evaluations={"bfcl": "live, 40 a category, seed 0 (120 questions)"},
        data=(DataFact("train", "hub/data", "a" * 64, 1234),),
        config={"rl": {"steps": 5}},
        git_commit="c0ffee",
        limits=("An example.",),
    )
    return dataclasses.replace(base, **more)  # type: ignore[arg-type]


@pytest.fixture
def run_id(client: MlflowClient, tmp_path: Path) -> str:
    experiment = client.create_experiment("test", artifact_location=(tmp_path / "artifacts").as_uri())
    return str(client.create_run(experiment).info.run_id)


def test_registered_from_the_runs_artifacts_it_loads_and_says_what_it_is(
    client: MlflowClient, checkpoint: Path, run_id: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkpoint.iterdir()}
    made = registry.register_model(client, RegistryConfig(), checkpoint=checkpoint, run_id=run_id, facts=facts())
    assert {path: path.stat().st_mtime_ns for path in checkpoint.iterdir()} == before
    version = registry.get_version(client, NAME)
    assert str(version.version) == made.version == "1"
    assert version.run_id == run_id
    folder = Path(urlsplit(made.location).path)
    assert {path.name for path in folder.iterdir()} == {p.name for p in before} - {"optimizer.pt"} | {"README.md"}
    assert not any(path.is_symlink() for path in folder.iterdir())
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a").input_ids == [1]
    readme = (folder / "README.md").read_text()
    for text in (
        "| bfcl/call_accuracy | 0.5000 |",
        "a" * 64,
        "c0ffee",
        "vllm serve . --enable-auto-tool-choice",
        "An example.",
        '"steps": 5',
        "1,234",
    ):
        assert text in readme
    registry.describe(client, made, facts(), "it would become champion")
    version = registry.get_version(client, NAME)
    assert str(version.description).startswith("**it would become champion**")
    assert "pw" not in readme + str(version.tags) + str(version.description)
    assert "| bfcl/call_accuracy | 0.5000 |" in str(version.description)
    assert version.tags["git_commit"] == "c0ffee"
    assert version.tags["data/train/sha256"] == "a" * 64
    assert version.tags[f"metric/{METRIC}"] == "0.5000"


def test_a_version_shares_the_checkpoints_blocks_and_outlives_another_training(
    client: MlflowClient, checkpoint: Path, run_id: str, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(checkpoint, tmp_path / "trained")
    made = registry.register_model(client, RegistryConfig(), checkpoint=checkpoint, run_id=run_id, facts=facts())
    stored = Path(urlsplit(made.location).path) / "model.safetensors"
    assert stored.samefile(checkpoint / "model.safetensors")
    before = stored.read_bytes()
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    torch.nn.init.zeros_(model.get_input_embeddings().weight)
    save_policy(model, AutoTokenizer.from_pretrained(checkpoint), checkpoint, dtype=torch.float32)
    assert stored.read_bytes() == before != (checkpoint / "model.safetensors").read_bytes()


def test_the_image_that_it_was_trained_in_is_named() -> None:
    image = "registry.example/rest-train@sha256:" + "1" * 64
    assert f"image: `{image}`" in model_card(NAME, facts(image=image), use="")


def test_the_commands_of_the_card_work_as_they_are_pasted(
    client: MlflowClient, checkpoint: Path, run_id: str, tmp_path: Path
) -> None:
    made = registry.register_model(client, RegistryConfig(), checkpoint=checkpoint, run_id=run_id, facts=facts())
    registry.describe(client, made, facts(), "")
    card = str(registry.get_version(client, NAME).description)
    block = card.split("```bash\n")[1].split("```")[0]
    # Neither vLLM nor a person is there.
    block = block.replace("rest serve", "rest serve --dry-run --python true").replace("rest chat", "rest chat --help #")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(
        ["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"--served-model-name {NAME}" in done.stdout
    assert (tmp_path / f"{NAME}-1" / "model.safetensors").is_file() or list(tmp_path.rglob("model.safetensors"))


def test_registered_in_a_folder_of_its_own(client: MlflowClient, checkpoint: Path, run_id: str, tmp_path: Path) -> None:
    where = RegistryConfig(destination=str(tmp_path / "models"))
    made = registry.register_model(client, where, checkpoint=checkpoint, run_id=run_id, facts=facts())
    assert made.location == (tmp_path / "models" / NAME / run_id).as_uri()
    AutoModelForCausalLM.from_pretrained(tmp_path / "models" / NAME / run_id)


@pytest.mark.parametrize("prefix", ["models", "models [prod]", "m*dels", "mödel+s%20"])
def test_registered_on_s3(client: MlflowClient, checkpoint: Path, run_id: str, empty_s3: Any, prefix: str) -> None:
    empty_s3.create_bucket(Bucket="bucket")
    where = RegistryConfig(destination=f"s3://bucket/{prefix}/")
    made = registry.register_model(client, where, checkpoint=checkpoint, run_id=run_id, facts=facts())
    assert made.location == f"s3://bucket/{prefix}/{NAME}/{run_id}"
    keys = {one["Key"].rsplit("/", 1)[-1] for one in empty_s3.list_objects_v2(Bucket="bucket")["Contents"]}
    assert {"config.json", "model.safetensors", "README.md"} <= keys


@pytest.mark.parametrize("prefix", ["m?dels", "models#1"])
def test_a_destination_that_mlflow_cannot_look_into_is_refused_before_anything_is_stored(prefix: str) -> None:
    with pytest.raises(UserError, match=r"registry: destination: MLflow looks for no model behind"):
        validate(RegistryConfig, {"destination": f"s3://bucket/{prefix}"}, where="registry")


@pytest.mark.parametrize("gone", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_an_incomplete_checkpoint_is_refused_and_nothing_registered(
    client: MlflowClient, checkpoint: Path, run_id: str, tmp_path: Path, gone: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        if path.name != gone:
            (broken / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="missing"):
        registry.register_model(client, RegistryConfig(), checkpoint=broken, run_id=run_id, facts=facts())
    assert client.search_registered_models() == []


def test_a_config_that_does_not_load_is_refused(
    client: MlflowClient, checkpoint: Path, run_id: str, tmp_path: Path
) -> None:
    for path in checkpoint.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="transformers does not load it"):
        registry.register_model(client, RegistryConfig(), checkpoint=tmp_path, run_id=run_id, facts=facts())


def test_a_version_whose_files_are_not_there_does_not_stay(
    client: MlflowClient, checkpoint: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "_link_or_copy", lambda *_: None)  # a copy that silently does nothing
    with pytest.raises(UserError, match=r"model\.safetensors.* not stored completely"):
        registry.register_model(client, RegistryConfig(), checkpoint=checkpoint, run_id=run_id, facts=facts())
    assert client.search_model_versions(f"name = '{NAME}'") == []


def test_a_retried_registration_makes_no_second_version(client: MlflowClient, checkpoint: Path, run_id: str) -> None:
    def register(**more: object) -> registry.Registered:
        return registry.register_model(
            client, RegistryConfig(), checkpoint=checkpoint, run_id=run_id, facts=facts(**more)
        )

    first = register()
    client.delete_registered_model_alias(NAME, registry.CHALLENGER)  # the first attempt has died before the alias
    assert register() == first
    assert str(registry.get_version(client, NAME).version) == first.version
    client.set_registered_model_alias(NAME, registry.CHAMPION, first.version)
    client.delete_registered_model_alias(NAME, registry.CHALLENGER)
    assert register() == first
    assert registry.CHALLENGER not in client.get_registered_model(NAME).aliases  # the champion is none
    assert register(pipeline_run="another").version == "2"
    assert register(evaluated="b" * 64).version == "3"  # what it was evaluated with has changed
    client.delete_model_version(NAME, "3")
    client.delete_registered_model_alias(NAME, registry.CHAMPION)
    Path(urlsplit(first.location).path, "model.safetensors").unlink()  # an attempt that has died while it stored
    again = register()
    assert again.version == "4"
    assert [str(one.version) for one in client.search_model_versions(f"name = '{NAME}'")] == ["4", "2"]


def test_a_version_has_ten_tags_at_most() -> None:
    benchmarks = ("bfcl/call_accuracy", "bfcl/irrelevance_accuracy", "bfcl/multi_turn_accuracy", "bfcl/memory_accuracy")
    more = dict.fromkeys([*benchmarks, "api_bank/overall_soft", "api_bank/overall_strict", "bfcl/live"], 0.25)
    tags = registry._version_tags(facts(metrics=more, image="rest-train:0.1.0"))
    assert len(tags) == 9  # and the checkpoint's hash
    assert "metric/bfcl/call_accuracy" in tags and "metric/bfcl/live" not in tags


def test_a_long_card_fits_the_registry() -> None:
    text = registry._description("\n".join("line" for _ in range(3000)))
    assert len(text) <= 5000
    assert text.endswith("README.md in the checkpoint)")


def test_the_card_begins_with_the_main_figures_side_by_side():
    metrics = {"bfcl/call_accuracy": 0.0, "bfcl/irrelevance_accuracy": 1.0, "bfcl/live": 0.5, "a/b": 2.0}
    metrics |= {"bfcl/low/call_accuracy": 0.0, "bfcl/high/call_accuracy": 0.08}
    lines = model_card(NAME, facts(metrics=metrics | {"bfcl/subset": 1.0}), use="").splitlines()
    assert lines.index("SUBSET: a part of the questions of bfcl only; the intervals say how far that carries.") < 7
    first = lines.index("| bfcl/call_accuracy | 0.0000 | 0.0000 – 0.0800 |")
    assert lines[first + 1] == "| bfcl/irrelevance_accuracy | 1.0000 |  |"
    others = [lines.index(line) for line in ("## How to use it", "| a/b | 2.0000 |", "| bfcl/live | 0.5000 |")]
    assert [first, *others] == sorted([first, *others])


def test_the_card_links_to_the_training_and_shows_answers_as_code():
    samples = (Sample("a | b\n`c`", '[{"name": "f"}]', "right"),)
    card = model_card(NAME, facts(samples=samples, training_run="1/abc"), use="")
    assert "([training](#/experiments/1/runs/abc))" in card
    assert '| `` a \\| b `c` `` | ` [{"name": "f"}] ` | right |' in card


def test_a_pod_registers_nothing_on_its_own_disk(
    client: MlflowClient, checkpoint: Path, run_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pods.RUN_ID_VARIABLE, "run-1")
    monkeypatch.setattr(pods, "on_volume", lambda place: place.is_relative_to("/work"))
    with pytest.raises(UserError, match=r"^MLflow's experiment 'test' has its artifacts at .*pod's own disk"):
        registry.register_model(client, RegistryConfig(), checkpoint=checkpoint, run_id=run_id, facts=facts())
    own = RegistryConfig(destination=str(tmp_path / "models"))
    with pytest.raises(UserError, match=r"^registry.destination: .* is on no volume"):
        registry.register_model(client, own, checkpoint=checkpoint, run_id=run_id, facts=facts())
    assert not client.search_registered_models() and not (tmp_path / "models").exists()


def test_a_pod_registers_on_a_volume(
    client: MlflowClient, checkpoint: Path, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(pods.RUN_ID_VARIABLE, "run-1")
    monkeypatch.setattr(pods, "on_volume", lambda place: True)
    made = registry.register_model(client, RegistryConfig(), checkpoint=checkpoint, run_id=run_id, facts=facts())
    assert registry.missing_files(client, registry.get_version(client, NAME, made.version)) == []


def test_a_name_that_mlflow_refuses_is_one_line(client: MlflowClient, checkpoint: Path, run_id: str) -> None:
    config = RegistryConfig.model_construct(enabled=True, name="a:b", destination=None)  # as of an older profile
    with pytest.raises(UserError, match=r"^MLflow at sqlite:.*Invalid model name 'a:b'") as told:
        registry.register_model(client, config, checkpoint=checkpoint, run_id=run_id, facts=facts())
    assert "\n" not in str(told.value)
