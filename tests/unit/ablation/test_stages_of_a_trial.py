"""What the stages know of a trial, and the stage that compares them, into a real MLflow store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli import cli
from rest_core import manifest, stages
from rest_core.ablation.collect import collect
from rest_core.ablation.settings import AblationConfig, Trial
from rest_core.config import (
    ApiBankConfig,
    BfclConfig,
    EvaluationConfig,
    ModelConfig,
    PaperWeights,
    RlConfig,
    TrackingConfig,
)
from rest_core.data.published import Unreachable
from rest_core.errors import UserError
from rest_core.operations.tracking.delivery import deliver
from rest_core.operations.tracking.store import open_client

Evaluation = Callable[..., Path]
TRIAL = Trial(
    name="entropy-only",
    seed=4,
    weights=PaperWeights(curriculum=False),
    rl={"advantage_std": "none", "loss": {"aggregation": "constant_length"}},
)


@pytest.fixture(autouse=True)
def unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records stay in their spools: the process that sends them takes seconds to start."""

    class Idle:
        def __init__(self, *_: Any) -> None: ...

        def finish(self) -> bool:
            return True

    monkeypatch.setattr("rest_core.operations.tracking.runs.Sender", Idle)


def by_name(tracking: TrackingConfig) -> dict[str, Any]:
    client = open_client(str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


@pytest.fixture
def policy(tracking: TrackingConfig, tmp_path: Path) -> Path:
    """What rest-rl leaves of a trial; its training is switched off."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (tmp_path / "data").mkdir()
    manifest.write(tmp_path / "data", stage="prepare-data", config={}, inputs={}, counts={})
    stages.rest_rl(
        model=ModelConfig(),
        rl=RlConfig(enabled=False, seed=1),
        tracking=tracking,
        pipeline_run="abl",
        dataset=tmp_path / "data",
        policy=base,
        out=tmp_path / "trained",
        trial=TRIAL,
    )
    return tmp_path / "trained"


def test_a_training_has_its_trials_weights_and_seed(policy: Path, tracking: TrackingConfig) -> None:
    config = manifest.read(policy)["config"]
    assert Trial.model_validate(config["trial"]) == TRIAL
    assert (config["rl"]["weights"], config["rl"]["seed"]) == (TRIAL.weights.model_dump(mode="json"), 4)
    deliver(policy.parent, str(tracking.uri))
    runs = by_name(tracking)
    params = runs["entropy-only · seed 4"].data.params
    assert params["cfg/rl/weights/curriculum"] == "false" and params["cfg/rl/advantage_std"] == "none"
    assert params["cfg/rl/loss/aggregation"] == "constant_length"
    assert runs["rest-rl · entropy-only · seed 4"].data.tags["rest.scheme"] == "entropy-only"


def test_what_mlflow_keeps_of_a_trial_reproduces_it(policy: Path, tracking: TrackingConfig, tmp_path: Path) -> None:
    deliver(policy.parent, str(tracking.uri))
    client, run = open_client(str(tracking.uri)), by_name(tracking)["rest-rl · entropy-only · seed 4"]
    client.download_artifacts(run.info.run_id, "config.json", str(tmp_path))
    trial = f"{run.data.tags['rest.scheme']}={run.data.tags['rest.scheme_settings']}"
    command = ["train", "--profile", str(tmp_path / "config.json"), "--trial", trial]
    folders = [
        "--dataset",
        str(tmp_path / "data"),
        "--policy",
        str(tmp_path / "base"),
        "--out",
        str(tmp_path / "again"),
    ]
    done = CliRunner().invoke(cli, [*command, *folders, "--set", f"tracking.uri={tracking.uri}"])
    assert done.exit_code == 0, done.output
    assert manifest.read(tmp_path / "again")["config"] == manifest.read(policy)["config"]


def test_an_evaluation_belongs_to_its_policys_trial(
    policy: Path, tracking: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(uri: str) -> Path:
        raise Unreachable(f"{uri}: no network")

    monkeypatch.setattr("rest_core.data.published.fetch", unreachable)
    common: dict[str, Any] = {"model": ModelConfig(), "evaluation": EvaluationConfig(), "tracking": tracking}
    common |= {"pipeline_run": "abl", "policy": policy}
    stages.evaluate_api_bank(**common, api_bank=ApiBankConfig(), out=tmp_path / "api-bank")
    stages.evaluate_bfcl(**common, bfcl=BfclConfig(enabled=False), out=tmp_path / "bfcl")
    (result,) = collect([tmp_path / "api-bank", tmp_path / "bfcl"])
    assert result.trial == TRIAL
    assert result.skipped == {
        "evaluate-api-bank": "published:api-bank: no network",
        "evaluate-bfcl": "switched off (bfcl.enabled=false)",
    }
    assert manifest.read(tmp_path / "bfcl")["inputs"]["policy"] == manifest.read(policy)["sha256"]
    deliver(tmp_path, str(tracking.uri))
    runs = by_name(tracking)
    assert "evaluate-api-bank · entropy-only · seed 4" in runs
    assert not any(name.startswith("evaluate-bfcl") for name in runs)  # it is off, and has no run to compare


def test_weights_that_do_not_fit_are_refused_before_anything_is_done(tracking: TrackingConfig, tmp_path: Path) -> None:
    trial = Trial.model_validate({"name": "x", "seed": 0, "weights": {"scheme": "uniform"}, "rl": {"final": "best"}})
    with pytest.raises(UserError, match=r"trial x · seed 0: rl: .*final=best needs evaluate_every"):
        stages.rest_rl(
            model=ModelConfig(),
            rl=RlConfig(),
            tracking=tracking,
            pipeline_run="abl",
            dataset=tmp_path,
            policy=tmp_path,
            out=tmp_path / "trained",
            trial=trial,
        )


def test_the_comparison_closes_the_ablation_with_its_report(
    evaluation: Evaluation, tracking: TrackingConfig, tmp_path: Path
) -> None:
    values = {"uniform": (0.50, 0.54), "paper": (0.55, 0.60)}
    bfcl = [
        evaluation(name, seed, {"bfcl/call_accuracy": v}) for name, two in values.items() for seed, v in enumerate(two)
    ]
    bank = [
        evaluation(name, seed, {}, stage="evaluate-api-bank", skipped="no network")
        for name in values
        for seed in (0, 1)
    ]
    out = tmp_path / "out" / "report"
    result = stages.aggregate(
        ablation=AblationConfig(),
        tracking=tracking,
        pipeline_run="abl",
        evaluations={"trained": {"bfcl": bfcl, "api_bank": bank}},
        out=out,
    )
    assert result.metrics["ablation/bfcl/call_accuracy/paper - uniform"] == pytest.approx(0.055)
    made = manifest.read(out)
    assert made["counts"]["trials"] == 4
    assert sorted(made["inputs"]["evaluations"]) == sorted(manifest.read(one)["sha256"] for one in (*bfcl, *bank))
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))["title"] == "Ablation abl"
    deliver(out.parent, str(tracking.uri))
    run = by_name(tracking)["abl"]
    assert run.info.status == "FINISHED"
    assert run.data.metrics["ablation/bfcl/call_accuracy/paper"] == pytest.approx(0.575)
    assert "| paper | 2 | 57.5% |" in run.data.tags["mlflow.note.content"]
    stage = by_name(tracking)["aggregate"]
    assert {stage.data.tags[f"rest.input/{n:03}"] for n in range(8)} == {str(one) for one in (*bfcl, *bank)}
    assert stage.data.params["cfg/ablation/baseline"] == "uniform"
    client = open_client(str(tracking.uri))
    assert {one.path for one in client.list_artifacts(run.info.run_id)} == {
        "report.json",
        "trials.csv",
        "comparison.png",
        "report.html",
    }
