"""An ablation through kfp's own local runner on a random-weight model, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCHEMES = ("--scheme", "uniform", "--scheme", "flat={scheme: paper, curriculum: false}")
TRIALS = [f"{name} · seed {seed}" for seed in (0, 1) for name in ("uniform", "flat")]
RUNS_OF_A_TRIAL = ("rest-rl", "evaluate-bfcl-trained")  # API-Bank is off, and what is off has no run
METRIC = ("--metric", "bfcl/simple_python")


def _rest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=1500,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A finished ablation of 2 schemes and 2 seeds: the folder it was started in, its report, what it printed."""
    folder = tmp_path_factory.mktemp("ablation")
    api_bank = ("--set", "api_bank.enabled=false")
    done = _rest(
        folder, "ablate", "--profile", "tiny", *SCHEMES, "--seeds", "0,1", *METRIC, *api_bank, "--output", "runs/a"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "runs/a/report/report.json").read_text(encoding="utf-8"))
    return folder, report, done.stdout


def test_every_trial_is_trained_with_its_own_weights_and_seed(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = run
    assert sorted((trial["name"], trial["seed"]) for trial in report["trials"]) == [
        ("flat", 0),
        ("flat", 1),
        ("uniform", 0),
        ("uniform", 1),
    ]
    trained = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in folder.glob("runs/a/artifacts/*/*-iteration-*/rest-rl/trained/manifest.json")
    ]
    settings = {(one["config"]["rl"]["weights"]["scheme"], one["config"]["rl"]["seed"]) for one in trained}
    assert settings == {("uniform", 0), ("paper", 0), ("uniform", 1), ("paper", 1)}
    assert not [one for one in trained if one["config"]["rl"]["weights"].get("curriculum")]
    assert len({one["inputs"]["policy"] for one in trained}) == 1  # all from one warm-up


def test_the_report_has_what_was_measured(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, out = run
    assert set(report["comparisons"]) == {"bfcl/simple_python", "bfcl/irrelevance_accuracy", "reward/after"}
    for comparison in report["comparisons"].values():
        assert set(comparison["schemes"]) == {"uniform", "flat"}
        assert set(comparison["differences"]) == {"flat"}
        assert set(comparison["differences"]["flat"]["values"]) == {"0", "1"}
    rewards = report["comparisons"]["reward/after"]["schemes"]["uniform"]["values"]
    files = sorted(folder.glob("runs/a/artifacts/*/*-iteration-*/rest-rl/metrics"))
    measured = [json.loads(path.read_text(encoding="utf-8"))["reward/after"] for path in files]
    assert [rewards["0"], rewards["1"]] == measured[::2]  # trials go seed by seed, uniform first
    assert (folder / "runs/a/report/report.html").is_file()
    assert "minus uniform" in out
    for name in TRIALS:
        assert f"✓ rest-rl · {name}" in out


def test_mlflow_has_the_trials_between_the_ablation_and_its_stages(run: tuple[Path, dict[str, Any], str]) -> None:
    from mlflow import MlflowClient

    folder, _, _ = run
    summary = json.loads((folder / "runs/a/summary.json").read_text(encoding="utf-8"))
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("rest")
    assert experiment is not None
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert {one.info.status for one in runs.values()} == {"FINISHED"}
    parent = runs[summary["run"]]
    assert parent.info.run_id in summary["mlflow"]
    children = {name for name, one in runs.items() if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    once = {"prepare-data", "sft-warmup", "evaluate-bfcl-base", "evaluate-bfcl-warmup", "aggregate"}
    assert children == {*once, *TRIALS}
    for name in TRIALS:
        trial = runs[name]
        stages = {one for one, its in runs.items() if its.data.tags.get("mlflow.parentRunId") == trial.info.run_id}
        assert stages == {f"{stage} · {name}" for stage in RUNS_OF_A_TRIAL}
        assert {"reward/after", "bfcl/simple_python"} <= trial.data.metrics.keys()
        assert trial.data.params["cfg/rl/seed"] == trial.data.tags["rest.seed"]
    artifacts = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"report.json", "trials.csv", "comparison.png", "report.html"}
    assert "| uniform | 2 |" in parent.data.tags["mlflow.note.content"]
    assert summary["unsent"] == 0


def test_the_same_comparison_by_hand(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, report, _ = run
    evaluations = sorted(folder.glob("runs/a/artifacts/*/*-iteration-*/evaluate-bfcl-trained/report"))
    done = _rest(folder, "aggregate", *map(str, evaluations), "--profile", "tiny", *METRIC, "--out", "again")
    assert done.returncode == 0, done.stdout + done.stderr
    again = json.loads((folder / "again/report.json").read_text(encoding="utf-8"))
    assert again["comparisons"] == report["comparisons"]


def test_a_baseline_that_is_no_scheme_ends_in_one_line(tmp_path: Path) -> None:
    done = _rest(tmp_path, "ablate", "--profile", "tiny", "--scheme", "paper", "--output", "x")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ablation.baseline=uniform: no trial has this scheme")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x").exists()
