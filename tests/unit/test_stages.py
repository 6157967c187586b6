"""Stages on a tiny checkpoint and a real MLflow store; the two evaluations have tests of their own."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM

from rest_core import manifest, stages, storage
from rest_core.config import (
    ApiBankConfig,
    BfclConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    RlConfig,
    SftConfig,
    StorageConfig,
    TrackingConfig,
)
from rest_core.data import store
from rest_core.errors import Preempted, UserError
from rest_core.model import loading
from rest_core.operations import handoff, policies
from rest_core.operations.result import StageResult
from rest_core.operations.tracking import runs
from rest_core.operations.tracking.store import open_client
from rest_core.records import Message, Sample, Tool, ToolCall
from rest_core.response import render
from rest_core.stages.training import ADAPTER
from rest_core.training.rl import RlTrainer

pytestmark = pytest.mark.usefixtures("fresh_accelerator")

RL = RlConfig(
    steps=2,
    prompts_per_step=2,
    group_size=4,
    max_response_tokens=32,
    learning_rate=0.01,
    reward="rest",
    reward_probe_prompts=2,
    checkpoint_every=1,
)
SFT = SftConfig(max_steps=2, batch_size=2, micro_batch_size=2, learning_rate=0.01)
RUN = "test run"


@pytest.fixture
def model(tiny_checkpoint: Path) -> ModelConfig:
    return ModelConfig(source=str(tiny_checkpoint), dtype="float32")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of three samples in both of its training splits."""
    folder = tmp_path_factory.mktemp("prepared")
    samples = [
        Sample(
            id=f"test/{n}",
            source="test",
            prompt=(Message("user", f"What is {n} plus {n}?"),),
            tools=(Tool("add", "Adds.", {"type": "object", "properties": {}, "required": []}),),
            reference=render(think=None, calls=[ToolCall("add", {"a": n, "b": n})], response=None),
        )
        for n in range(3)
    ]
    rows = [store.to_row(sample, prompt_tokens=10, reference_tokens=10) for sample in samples]
    # A reference without tags: a random model has the format right now and then, so that there is something to learn.
    prompts = [{**row, "reference": "words"} for row in rows]
    store.save({"sft": rows, "sft_validation": rows[:1], "rl": prompts, "rl_validation": prompts[:1]}, folder)
    manifest.write(folder, stage="prepare-data", config={}, inputs={}, counts={})
    return folder


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage records stays in its spool: the process that sends it takes seconds to start."""

    class Idle:
        def __init__(self, *_: Any) -> None: ...

        def finish(self) -> bool:
            return True

    monkeypatch.setattr(runs, "Sender", Idle)


Run = Callable[..., StageResult]


@pytest.fixture
def warm_up(model: ModelConfig, tracking: TrackingConfig, dataset: Path, tmp_path: Path) -> Run:
    def run(sft: SftConfig = SFT, **changes: Any) -> StageResult:
        arguments: dict[str, Any] = {"dataset": dataset, "out": tmp_path / "sft", **changes}
        return stages.sft_warmup(model=model, sft=sft, tracking=tracking, pipeline_run=RUN, **arguments)

    return run


@pytest.fixture
def train(model: ModelConfig, tracking: TrackingConfig, dataset: Path, tmp_path: Path) -> Run:
    def run(rl: RlConfig = RL, **changes: Any) -> StageResult:
        arguments: dict[str, Any] = {"dataset": dataset, "policy": model.source, "out": tmp_path / "rl", **changes}
        return stages.rest_rl(model=model, rl=rl, tracking=tracking, pipeline_run=RUN, **arguments)

    return run


def recorded(tracking: TrackingConfig, name: str) -> Any:
    """The one MLflow run of a name."""
    client = open_client(str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    (found,) = [run for run in client.search_runs([experiment.experiment_id]) if run.info.run_name == name]
    return found


def error_of(out: Path) -> dict[str, Any]:
    assert not (out / "manifest.json").exists() and not (out / "metrics.json").exists()
    return dict(json.loads((out / "error.json").read_text()))


def test_a_training_leaves_a_checkpoint_its_figures_and_its_lineage(
    train: Run, warm_up: Run, tracking: TrackingConfig, dataset: Path, tmp_path: Path, model: ModelConfig
) -> None:
    warmed = warm_up()
    result = train(policy=tmp_path / "sft")
    before = AutoModelForCausalLM.from_pretrained(model.source).state_dict()
    for stage, outcome, out in (("sft-warmup", warmed, tmp_path / "sft"), ("rest-rl", result, tmp_path / "rl")):
        assert outcome.skipped is None
        after = AutoModelForCausalLM.from_pretrained(out).state_dict()
        assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])
        before = after
        assert loading.load_tokenizer(out, model).chat_template
        assert not out.with_name(f"{out.name}.training").exists() and not (out / "error.json").exists()

        made = manifest.read(out)
        assert made["stage"] == stage and made["config"]["model"]["source"] == model.source
        assert made["inputs"]["dataset"] == manifest.read(dataset)["sha256"]
        assert made["sha256"] == manifest.sha256_folder(out)
        assert json.loads((out / "metrics.json").read_text()) == outcome.metrics
        assert made["counts"] == outcome.metrics
        last = (out / "manifest.json").stat().st_mtime_ns
        assert all(path.stat().st_mtime_ns <= last for path in out.rglob("*"))

        run = recorded(tracking, stage)
        assert run.info.status == "FINISHED"
        assert run.data.metrics.items() >= outcome.metrics.items()
    assert manifest.read(tmp_path / "rl")["inputs"]["policy"] == manifest.read(tmp_path / "sft")["sha256"]
    assert {"reward/before", "reward/after", "rl/last/reward/total"} <= result.metrics.keys()
    client = MlflowClient(tracking.uri)
    run = recorded(tracking, "rest-rl")
    assert [point.step for point in client.get_metric_history(run.info.run_id, "reward/total")] == [1, 2]
    assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"tables", "figures", "config.json"}
    assert run.data.params["cfg/rl/weights/scheme"] == "paper"


@pytest.mark.usefixtures("unsent")
def test_what_is_switched_off_passes_the_model_on(
    train: Run, warm_up: Run, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    off = warm_up(SftConfig(enabled=False))
    assert off.metrics == {} and "cold start" in str(off.skipped)
    assert policies.fetched(tmp_path / "sft") == str(tiny_checkpoint)
    assert manifest.read(tmp_path / "sft")["counts"]["skipped"] == off.skipped

    assert train(RlConfig(enabled=False), policy=tmp_path / "sft").skipped
    assert handoff.is_base_model(tmp_path / "rl")
    assert policies.fetched(tmp_path / "rl") == str(tiny_checkpoint)

    shutil.rmtree(tmp_path / "rl")
    train(RlConfig(enabled=False), policy=tiny_checkpoint)
    assert policies.fetched(tmp_path / "rl") == tmp_path / "rl"
    assert (tmp_path / "rl" / "model.safetensors").read_bytes() == (tiny_checkpoint / "model.safetensors").read_bytes()
    assert manifest.read(tmp_path / "rl")["stage"] == "rest-rl"


@pytest.mark.usefixtures("unsent")
def test_references_that_do_not_go_on_from_the_prompt_are_refused_before_a_model_is_loaded(
    train: Run,
    model: ModelConfig,
    tracking: TrackingConfig,
    dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = loading.load_tokenizer(model.source, model)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
    shutil.copytree(model.source, tmp_path / "thinking")
    tokenizer.save_pretrained(tmp_path / "thinking")
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("loaded"))
    message = rf"sample test/\d: the chat template of '{tmp_path}/thinking' opens <think> in the prompt, and the ref"
    with pytest.raises(UserError, match=message):
        train(policy=tmp_path / "thinking")
    thinking = model.model_copy(update={"source": str(tmp_path / "thinking")})
    out = tmp_path / "sft"
    with pytest.raises(UserError, match=message):
        stages.sft_warmup(model=thinking, sft=SFT, tracking=tracking, pipeline_run=RUN, dataset=dataset, out=out)


@pytest.mark.usefixtures("unsent")
def test_an_adapter_lies_beside_the_merged_weights_where_it_is_asked_for(
    warm_up: Run, train: Run, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    for run, settings, out in ((warm_up, SFT, tmp_path / "sft"), (train, RL, tmp_path / "rl")):
        for keep in (False, True):
            lora = LoraConfig(r=2, alpha=64, keep_adapter=keep)
            folder = out / str(keep)
            run(settings.model_copy(update={"lora": lora}), out=folder)
            assert (folder / ADAPTER / "adapter_config.json").is_file() == keep
        merged = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        base = AutoModelForCausalLM.from_pretrained(
            peft.PeftConfig.from_pretrained(folder / ADAPTER).base_model_name_or_path, dtype=torch.float32
        )
        with_adapter = peft.PeftModel.from_pretrained(base, folder / ADAPTER).merge_and_unload()
        ids = torch.tensor([[21, 22, 23]])
        torch.testing.assert_close(with_adapter(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("unsent")
def test_switching_a_stage_on_again_forgets_the_reference(warm_up: Run, tmp_path: Path) -> None:
    warm_up(SftConfig(enabled=False))
    warm_up()
    assert policies.fetched(tmp_path / "sft") == tmp_path / "sft"


@pytest.mark.usefixtures("unsent")
@pytest.mark.parametrize("stage", ["bfcl", "api_bank"])
def test_an_evaluation_that_is_switched_off_says_so(
    stage: str, model: ModelConfig, tracking: TrackingConfig, tmp_path: Path
) -> None:
    common: dict[str, Any] = {
        "model": model,
        "evaluation": EvaluationConfig(),
        "tracking": tracking,
        "pipeline_run": RUN,
        "policy": model.source,
        "out": tmp_path / stage,
    }
    if stage == "bfcl":
        result = stages.evaluate_bfcl(bfcl=BfclConfig(enabled=False), **common)
    else:
        result = stages.evaluate_api_bank(api_bank=ApiBankConfig(enabled=False), **common)
    assert f"{stage}.enabled=false" in str(result.skipped)
    assert manifest.read(tmp_path / stage)["counts"] == {"skipped": result.skipped}
    assert json.loads((tmp_path / stage / "metrics.json").read_text()) == {}


def test_an_error_of_the_user_is_left_beside_what_was_there(
    train: Run, tracking: TrackingConfig, tmp_path: Path
) -> None:
    out = tmp_path / "rl"
    out.mkdir()
    for stale in ("manifest.json", "metrics.json"):  # of an earlier run that went well
        (out / stale).write_text("{}")
    with pytest.raises(UserError) as caught:
        train(dataset=tmp_path / "nowhere")
    assert error_of(out) == {"stage": "rest-rl", "message": str(caught.value), "exit_code": 2}
    assert str(tmp_path / "nowhere") in str(caught.value) and "\n" not in str(caught.value)
    run = recorded(tracking, "rest-rl")
    assert run.info.status == "FAILED" and run.data.tags["rest.error"] == str(caught.value)


@pytest.mark.usefixtures("unsent")
def test_a_stage_that_goes_well_takes_the_error_away(warm_up: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not divide"):
        warm_up(SftConfig(batch_size=6, micro_batch_size=4))
    assert (tmp_path / "sft" / "error.json").exists()
    warm_up(SftConfig(enabled=False))
    assert not (tmp_path / "sft" / "error.json").exists()


FULL = {
    "the system's error": OSError(errno.ENOSPC, "No space left on device", "/data/x"),
    "safetensors' own": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "torch.save's": RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 6296704 vs 6296592"),
}


@pytest.mark.usefixtures("unsent")
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_volume_that_cannot_be_written_is_one_line(
    warm_up: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number), "/cache/huggingface/hub")

    monkeypatch.setattr(loading, "load_tokenizer", refused)
    with pytest.raises(UserError, match=r"^/cache/huggingface/hub: no permission; let this user \(id \d+\)") as caught:
        warm_up()
    assert error_of(tmp_path / "sft")["message"] == str(caught.value)


@pytest.mark.usefixtures("unsent")
@pytest.mark.parametrize("error", FULL)
def test_a_full_disk_is_one_line_and_loses_no_checkpoint(
    train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise FULL[error]

    monkeypatch.setattr(loading, "save_policy", full)
    with pytest.raises(UserError, match="the disk is full") as caught:
        train()
    out = tmp_path / "rl"
    assert error_of(out) == {"stage": "rest-rl", "message": str(caught.value), "exit_code": 2}
    assert ("/data/x" if "system" in error else str(out)) in str(caught.value)
    assert [path.name for path in sorted((tmp_path / "rl.training").glob("step-*"))] == ["step-000001", "step-000002"]


@pytest.mark.usefixtures("unsent")
def test_other_errors_keep_their_traceback(train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(loading, "save_policy", broken)
    with pytest.raises(OSError, match="Bad file descriptor"):
        train()
    assert not (tmp_path / "rl" / "error.json").exists()


@pytest.mark.usefixtures("unsent")
def test_a_training_that_stopped_goes_on(train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = train(out=tmp_path / "straight")
    with monkeypatch.context() as patch, pytest.raises(BaseException, match="killed here"):
        patch.setattr(loading, "save_policy", lambda *_, **__: pytest.fail("killed here"))
        train()
    shutil.rmtree(tmp_path / "rl.training" / "step-000002")
    resumed = train()
    for name in ("reward/before", "reward/after", "rl/updates", "rl/last/reward/total"):
        assert resumed.metrics[name] == straight.metrics[name]
    weights = [AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("straight", "rl")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())


def test_a_training_that_is_told_to_stop_says_so_and_is_complete_after_another_attempt(
    train: Run, tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = RlTrainer.train_step

    def told(self: RlTrainer, number: int) -> dict[str, float]:
        if number == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, number)

    rl = RL.model_copy(update={"evaluate_every": 1, "table_every": 1})
    with monkeypatch.context() as patch, pytest.raises(Preempted, match="left after step 1 of 2"):
        patch.setattr(RlTrainer, "train_step", told)
        train(rl)
    out = tmp_path / "rl"
    assert error_of(out)["exit_code"] == 75
    assert recorded(tracking, "rest-rl").info.status == "KILLED"

    result = train(rl)
    assert not (out / "error.json").exists() and not (tmp_path / "rl.training").exists()
    run = recorded(tracking, "rest-rl (attempt 2)")
    client = MlflowClient(tracking.uri)
    for metric, steps in (("reward/total", [1, 2]), ("task/accuracy", [0, 1, 2])):  # no step lost, none twice
        assert [point.step for point in client.get_metric_history(run.info.run_id, metric)] == steps
    tables = {item.path for item in client.list_artifacts(run.info.run_id, "tables")}
    assert tables == {"tables/completions_step_000001.json", "tables/completions_step_000002.json"}
    assert {"task/best", "rl/best_step"} <= result.metrics.keys()


def test_a_process_that_is_not_the_first_trains_and_writes_nothing(
    warm_up: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert warm_up().metrics["sft/steps"] == 2
    assert warm_up(SftConfig(enabled=False)).skipped is not None
    assert [path for path in tmp_path.glob("sft*/**/*") if path.is_file()] == []


def test_outputs_go_by_uri_and_a_lost_stage_goes_on(
    dataset: Path,
    model: ModelConfig,
    tracking: TrackingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    location = str(tmp_path / "volume")
    prepared = tmp_path / "prepared"
    handoff.write(prepared, handoff.store(dataset, location, "prepare-data"))
    shutil.copyfile(dataset / manifest.FILE_NAME, prepared / manifest.FILE_NAME)
    common: dict[str, Any] = {
        "model": model,
        "tracking": tracking,
        "pipeline_run": RUN,
        "storage": StorageConfig(location=location),
        "dataset": prepared,
    }
    sft = SFT.model_copy(update={"checkpoint_every": 1})
    warmed = stages.sft_warmup(sft=sft, out=tmp_path / "sft", **common)
    first = stages.rest_rl(rl=RL, policy=tmp_path / "sft", out=tmp_path / "rl", **common)
    for name in ("sft", "rl"):
        out = tmp_path / name
        assert {path.name for path in out.iterdir()} == {"reference.json", "manifest.json", "metrics.json"}
        assert manifest.read(out)["sha256"] == manifest.sha256_folder(handoff.fetch(out))
        assert not handoff.is_base_model(out)
    inputs = manifest.read(tmp_path / "rl")["inputs"]
    assert inputs == {
        name: manifest.read(tmp_path / part)["sha256"] for name, part in (("dataset", "prepared"), ("policy", "sft"))
    }
    assert manifest.read(tmp_path / "rl")["config"]["rl"]["mirror"] is None  # the run's own is no setting
    weights = loading.load_model(policies.fetched(tmp_path / "rl"), model).state_dict()

    # The pod is lost after the training; the stage is tried again, elsewhere, with nothing on its disk.
    again = stages.rest_rl(rl=RL, policy=tmp_path / "sft", out=tmp_path / "elsewhere" / "rl", **common)
    place = f"{handoff.scratch(location, RUN)}/checkpoints"
    assert stages.sft_warmup(sft=sft, out=tmp_path / "elsewhere" / "sft", **common).metrics == warmed.metrics
    for what in ("sft-warmup-", ""):
        assert any(record.message.startswith(f"downloading {place}/{what}") for record in caplog.records)
    assert again.metrics["rl/steps"] == first.metrics["rl/steps"]
    for name, weight in loading.load_model(policies.fetched(tmp_path / "elsewhere" / "rl"), model).state_dict().items():
        assert torch.equal(weight, weights[name])
    handoff.remove_scratch(location, RUN)
    assert storage.list_files(place) == []
