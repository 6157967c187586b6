"""Which policies the evaluation stages measure, what is asked only once, and how their figures are compared."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rest_core import manifest, stages
from rest_core.api_keys import OPENAI_VARIABLE
from rest_core.config import (
    ApiBankConfig,
    EvaluationConfig,
    GenerationConfig,
    ModelConfig,
    RegistryConfig,
    TrackingConfig,
)
from rest_core.errors import UserError
from rest_core.evaluation import openai_api
from rest_core.operations import policies
from rest_core.operations.result import StageResult
from rest_core.operations.tracking import runs
from rest_core.operations.tracking.delivery import deliver
from rest_core.operations.tracking.store import open_client
from rest_core.records import ToolCall
from rest_core.response import render
from rest_core.stages import policies as loaded

RUN = "test run"
KEY = "sk-secret-0123456789"
SHORT = GenerationConfig(max_response_tokens=8)
Evaluate = Callable[..., StageResult]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage records stays in its spool: the process that sends it takes seconds to start."""

    class Idle:
        def __init__(self, *_: Any) -> None: ...

        def finish(self) -> bool:
            return True

    monkeypatch.setattr(runs, "Sender", Idle)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models whose weights were loaded."""
    seen: list[str] = []
    load = loaded.load_model

    def counted(source: Any, *arguments: Any, **settings: Any) -> Any:
        seen.append(str(source))
        return load(source, *arguments, **settings)

    monkeypatch.setattr(loaded, "load_model", counted)
    return seen


@pytest.fixture(scope="session")
def small_api_bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two different items a level."""
    folder = tmp_path_factory.mktemp("api-bank")
    call = {"name": "GetWeather", "parameters": {"city": "Oslo"}}
    for level in (1, 2, 3):
        texts = [f"Weather in Oslo, level {level}, {number}?" for number in (1, 2)]
        items = [{"system": "Call tools.", "user": text, "answer": call if level == 2 else [call]} for text in texts]
        (folder / f"level-{level}-api_processed.json").write_text(json.dumps(items), encoding="utf-8")
    return folder


@pytest.fixture
def evaluate(tiny_checkpoint: Path, small_api_bank: Path, tracking: TrackingConfig, tmp_path: Path) -> Evaluate:
    """evaluate(out, …) puts API-Bank's items to the policy that the other arguments say."""

    def run(out: str, **changes: Any) -> StageResult:
        arguments: dict[str, Any] = {
            "model": ModelConfig(source=str(tiny_checkpoint), dtype="float32", prompt_style="compact"),
            "evaluation": EvaluationConfig(),
            "api_bank": ApiBankConfig(location=str(small_api_bank), generation=SHORT),
            "tracking": tracking,
            "pipeline_run": RUN,
            "out": tmp_path / out,
            **changes,
        }
        return stages.evaluate_api_bank(**arguments)

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.usefixtures("unsent")
def test_the_base_model_costs_once_for_the_same_items_and_settings(
    evaluate: Evaluate, loads: list[str], tmp_path: Path, small_api_bank: Path
) -> None:
    first = evaluate("one", evaluated="base")
    assert len(loads) == 1 and first.metrics["api_bank/count/overall"] == 6
    again = evaluate("two", evaluated="base")
    assert len(loads) == 1
    assert again.metrics == first.metrics and rows(tmp_path / "two") == rows(tmp_path / "one")
    assert manifest.read(tmp_path / "one")["stage"] == "evaluate-api-bank-base"
    longer = ApiBankConfig(location=str(small_api_bank), generation=GenerationConfig(max_response_tokens=9))
    evaluate("three", evaluated="base", api_bank=longer)
    assert len(loads) == 2


@pytest.mark.usefixtures("unsent")
def test_the_registry_is_given_all_that_decides_whether_figures_compare(
    evaluate: Evaluate, tmp_path: Path, small_api_bank: Path, tiny_checkpoint: Path
) -> None:
    changes: dict[str, Any] = {"one": {}, "same": {"batch_tokens": 4096}, "other": {"temperature": 0.5}}
    measured = {}
    for out, change in changes.items():
        generation = SHORT.model_copy(update=change)
        section = ApiBankConfig(location=str(small_api_bank), generation=generation)
        evaluate(out, policy=str(tiny_checkpoint), api_bank=section)
        measured[out] = manifest.read(tmp_path / out)["counts"]["measured_on"]
    assert measured["one"] == measured["same"]
    assert measured["other"] == measured["one"].replace("temperature 0.0", "temperature 0.5") != measured["one"]


@pytest.mark.usefixtures("unsent")
def test_what_is_evaluated_by_hand_is_asked_each_time(
    evaluate: Evaluate, loads: list[str], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    for out in ("one", "two"):
        evaluate(out, policy=str(tiny_checkpoint))
    assert len(loads) == 2
    assert manifest.read(tmp_path / "one")["stage"] == "evaluate-api-bank"


def _passed_on(folder: Path, *, base: bool, source: Path) -> Path:
    folder.mkdir()
    policies.point_to(folder, str(source)) if base else (folder / "config.json").write_text("{}", encoding="utf-8")
    manifest.write(folder, stage="x", config={}, inputs={}, counts={"skipped": "switched off"})
    return folder


@pytest.mark.usefixtures("unsent")
@pytest.mark.parametrize(
    ("evaluated", "base", "reason"),
    [
        ("warmup", True, "sft is off: the policy is the base model, which is evaluated as such"),
        ("trained", True, "rl is off: the policy is the base model, which is evaluated as such"),
        ("trained", False, "rl is off: the policy is the warm-up, which is evaluated as such"),
    ],
)
def test_a_policy_that_is_the_one_before_is_not_evaluated_again(
    evaluate: Evaluate, tmp_path: Path, tiny_checkpoint: Path, evaluated: str, base: bool, reason: str
) -> None:
    policy = _passed_on(tmp_path / "policy", base=base, source=tiny_checkpoint)
    assert evaluate("out", policy=policy, evaluated=evaluated).skipped == reason
    alone = evaluate("alone", policy=policy, evaluated=evaluated, evaluation=EvaluationConfig(policies=(evaluated,)))
    assert "evaluated as such" not in str(alone.skipped) and "evaluation.policies leaves out" in str(alone.skipped)


@pytest.mark.usefixtures("unsent")
def test_a_policy_that_is_not_named_is_not_evaluated(evaluate: Evaluate) -> None:
    some = EvaluationConfig(policies=("trained",))
    skipped = evaluate("out", evaluated="base", evaluation=some).skipped
    assert skipped == "switched off (evaluation.policies does not name base)"


def test_the_champion_is_evaluated_where_there_is_one(
    evaluate: Evaluate, tracking: TrackingConfig, tiny_checkpoint: Path, tmp_path: Path, loads: list[str]
) -> None:
    registry = RegistryConfig(name="models")
    result = evaluate("none", evaluated="champion", registry=registry)
    assert result.skipped == "models has no champion yet"
    assert manifest.read(tmp_path / "none")["counts"]["quiet"] is True

    client = open_client(str(tracking.uri))
    client.create_registered_model("models")
    version = client.create_model_version("models", tiny_checkpoint.as_uri()).version
    client.set_registered_model_alias("models", "champion", str(version))
    for out in ("one", "two"):
        evaluate(out, evaluated="champion", registry=registry)
    assert json.loads((tmp_path / "one" / "report.json").read_text())["model"] == "models version 1"
    assert loads == [str(tiny_checkpoint)]


def test_an_endpoint_is_evaluated_and_its_key_is_nowhere(
    evaluate: Evaluate,
    http_server: Callable[..., str],
    tracking: TrackingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(OPENAI_VARIABLE, KEY)
    monkeypatch.setattr(openai_api, "FIRST_PAUSE", 0.01)
    text = render(think=None, calls=[ToolCall("GetWeather", {"city": "Oslo"})], response=None)
    answers: list[Any] = [(200, {"choices": [{"message": {"content": text}}]})] * 4
    refusal = (400, {"error": {"message": f"no, {KEY}"}})
    asked: list[str] = []

    def answer(path: str, query: dict[str, str]) -> Any:
        asked.append(path)
        return answers.pop() if answers else refusal

    policy = f"openai:gpt-x@{http_server(answer)}/v1"
    settings = EvaluationConfig.model_validate({"endpoint": {"prompting": "prompt", "parallel": 1}})
    with pytest.raises(UserError, match=r"400: no, \*\*\*; the answers so far are kept"):
        evaluate("out", policy=policy, evaluation=settings)
    assert "answers 400" in json.loads((tmp_path / "out" / "error.json").read_text())["message"]
    answers += [(200, {"choices": [{"message": {"content": "none"}}]})] * 2
    result = evaluate("out", policy=policy, evaluation=settings)
    assert result.metrics["api_bank/overall_strict"] == pytest.approx(4 / 6)
    assert len(asked) == 7
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["model"] == "gpt-x"
    deliver(tmp_path, str(tracking.uri))
    assert KEY not in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "mlflow.db" for path in files)
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def test_the_policies_of_a_run_are_compared_on_its_own_run(
    evaluate: Evaluate,
    random_model: Callable[..., Any],
    tiny_tokenizer: Any,
    tracking: TrackingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained = tmp_path / "trained"
    random_model("llama", seed=1).save_pretrained(trained)
    tiny_tokenizer.save_pretrained(trained)
    evaluate("base", evaluated="base")
    evaluate("after", evaluated="trained", policy=str(trained))
    evaluate("off", evaluated="warmup", policy=str(trained), evaluation=EvaluationConfig(policies=("base",)))
    out = tmp_path / "compared"
    reports = {"base": tmp_path / "base", "warmup": tmp_path / "off", "trained": tmp_path / "after"}
    evaluations = {name: {"api_bank": folder} for name, folder in reports.items()}
    result = stages.compare_policies(tracking=tracking, pipeline_run=RUN, evaluations=evaluations, out=out)
    overview = json.loads((out / "overview.json").read_text())
    assert [one["policy"] for one in overview[0]["policies"]] == ["base", "ResT"]
    assert [one["pair"] for one in overview[0]["differences"]] == ["ResT - base"]
    assert {"value", "low", "high"} <= overview[0]["policies"][0].keys()
    assert "base → ResT" in (out / "comparison.html").read_text(encoding="utf-8")
    assert any(name.startswith("comparison/api_bank/") for name in result.metrics)

    deliver(tmp_path, str(tracking.uri))
    client = MlflowClient(str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    found = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {"evaluate-api-bank-base", "evaluate-api-bank-trained", "compare-policies", RUN} <= found.keys()
    metrics = found[RUN].data.metrics
    figure = overview[0]["figure"]
    compared = found["compare-policies"].data.metrics[f"base/{figure}"]
    assert compared == found["evaluate-api-bank-base"].data.metrics[figure]
    assert metrics[figure] == found["evaluate-api-bank-trained"].data.metrics[figure]
    assert metrics.keys() == {"api_bank/overall_soft", "api_bank/overall_strict"}  # the main ones alone
    files = {item.path for item in client.list_artifacts(found[RUN].info.run_id, "comparison/api_bank")}
    assert files == {f"comparison/api_bank/comparison.{kind}" for kind in ("html", "json", "md")}


@pytest.mark.usefixtures("unsent")
def test_evaluations_that_do_not_compare_stop_no_run(
    evaluate: Evaluate, tracking: TrackingConfig, tmp_path: Path, small_api_bank: Path, tiny_checkpoint: Path
) -> None:
    evaluate("base", evaluated="base")
    longer = ApiBankConfig(location=str(small_api_bank), generation=GenerationConfig(max_response_tokens=9))
    evaluate("after", evaluated="trained", policy=str(tiny_checkpoint), api_bank=longer)
    evaluations = {"base": {"api_bank": tmp_path / "base"}, "trained": {"api_bank": tmp_path / "after"}}
    out = tmp_path / "compared"
    stages.compare_policies(tracking=tracking, pipeline_run=RUN, evaluations=evaluations, out=out)
    assert "limit max_response_tokens: 8 and 9" in (out / "comparison.html").read_text(encoding="utf-8")
    one = {"base": {"api_bank": tmp_path / "base"}}
    alone = stages.compare_policies(tracking=tracking, pipeline_run=RUN, evaluations=one, out=tmp_path / "alone")
    assert alone.skipped == "fewer than two policies were evaluated"


def test_weights_are_known_by_a_commit_or_by_files(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub" / "models--own--model"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc123", encoding="utf-8")
    (hub / "snapshots" / "abc123").mkdir(parents=True)
    (hub / "snapshots" / "abc123" / "config.json").write_text("{}", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert loaded._weights("own/model", ModelConfig()) == {"commit": "abc123"}
    assert loaded._weights("own/unknown", ModelConfig()) is None
    assert "model.safetensors" in (loaded._weights(tiny_checkpoint, ModelConfig()) or {})
    assert loaded._weights(tiny_checkpoint, ModelConfig(init="random")) is None
