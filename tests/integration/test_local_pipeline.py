"""The whole pipeline through kfp's own local runner on a random-weight model, as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

from rest_core.operations.catalogue import PIPELINE

STAGES = tuple(stage.name for stage in PIPELINE)

pytestmark = pytest.mark.slow


def _rest(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, small_api_bank: Path) -> tuple[Path, dict[str, Any], str]:
    """A finished run: the folder that it was started in, its summary, and what it printed."""
    folder = tmp_path_factory.mktemp("pipeline")
    process = _rest(folder, "run", "--profile", "tiny", "--output", "runs/tiny", "--api-bank", str(small_api_bank))
    out, err = process.communicate(timeout=1500)
    assert process.returncode == 0, out + err
    return folder, json.loads((folder / "runs/tiny/summary.json").read_text(encoding="utf-8")), out


def test_every_stage_is_done_and_measured(run: tuple[Path, dict[str, Any], str]) -> None:
    _, summary, out = run
    assert summary["status"] == "succeeded"
    off = {name for name in STAGES if name.endswith("-champion")}  # there is none yet
    assert [(stage["name"], stage["status"]) for stage in summary["stages"]] == [
        (name, "off" if name in off else "done") for name in STAGES
    ]
    metrics = {stage["name"]: stage["metrics"] for stage in summary["stages"]}
    assert metrics["prepare-data"]["data/rl"] > 0
    assert metrics["sft-warmup"]["sft/steps"] == 2
    assert metrics["rest-rl"]["rl/steps"] == 2
    for policy in ("base", "warmup", "trained"):
        assert metrics[f"evaluate-bfcl-{policy}"]["bfcl/count/simple_python"] == 2
        assert metrics[f"evaluate-api-bank-{policy}"]["api_bank/count/overall"] == 6
    assert metrics["compare-and-register"]["registry/version"] == 1
    assert sum(stage["seconds"] for stage in summary["stages"]) == pytest.approx(summary["seconds"], abs=5)
    assert all(stage["peak_rss_mib"] > 100 for stage in summary["stages"])
    for name in STAGES:
        assert (f"- {name}  off" if name in off else f"✓ {name}  ") in out
    assert "Reward on 2 " in out
    figures = {row["figure"]: [one["policy"] for one in row["policies"]] for row in summary["comparison"]}
    assert figures["bfcl/call_accuracy"] == figures["bfcl/irrelevance_accuracy"] == ["base", "warm-up", "ResT"]
    assert "irrelevance accuracy" in out and "ResT - base" in out


def test_the_base_models_answers_are_kept_for_later_runs(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, _ = run
    kept = list((folder / "cache" / "rest-pipelines" / "answers").glob("*/*.jsonl"))
    base = folder.glob("runs/tiny/artifacts/*/evaluate-*-base/report/rows.jsonl")
    rows = [line for path in base for line in path.read_text(encoding="utf-8").splitlines()]
    assert sum(len(path.read_text(encoding="utf-8").splitlines()) for path in kept) <= len(rows) == 4 + 6
    assert kept


def test_the_terminal_is_spared_the_runners_log(run: tuple[Path, dict[str, Any], str]) -> None:
    folder, _, out = run
    whole, log = ((folder / "runs/tiny" / name).read_text(encoding="utf-8") for name in ("kfp.log", "log.txt"))
    assert "Streamed logs" in whole
    assert "Streamed logs" not in out
    assert "Streamed logs" not in log and '"parameterValues"' not in log
    assert [line for line in log.splitlines() if line in STAGES] == list(
        dict.fromkeys(line for line in log.splitlines() if line in STAGES)
    )
    assert "registered rest-tiny version 1" in log
    assert len(out.splitlines()) < 150  # in a narrow terminal, tables and all


def test_mlflow_has_a_parent_run_with_a_nested_run_for_each_stage(run: tuple[Path, dict[str, Any], str]) -> None:
    from mlflow import MlflowClient

    folder, summary, _ = run
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("rest")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert [one.info.run_name for one in parents] == [summary["run"]]
    nested = {one.info.run_name for one in runs if one.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id}
    assert nested == set(STAGES)
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert parents[0].info.run_id in summary["mlflow"]
    assert summary["unsent"] == 0
    assert str(client.get_model_version_by_alias("rest-tiny", "challenger").version) == "1"


def test_a_wrong_record_ends_in_one_line_and_exit_code_2(tmp_path: Path) -> None:
    tool = {"name": "f", "description": "", "parameters": {"type": "object", "properties": {}}}
    record = {
        "messages": [{"role": "user", "content": "call f"}],
        "tools": [tool],
        "target": {"calls": [{"name": "f", "arguments": {}}]},
    }
    (tmp_path / "calls.jsonl").write_text(json.dumps(record) + '\n{"messages": [\n', encoding="utf-8")
    stop = ("--set", "data.on_invalid=stop")
    process = _rest(tmp_path, "run", "--profile", "tiny", "--data", "calls.jsonl", *stop, "--output", "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("\n") == 2
    assert err.startswith("error: prepare-data: ")
    assert err.endswith("rest run --resume run\n")
    assert "calls.jsonl" in err
    assert "line 2" in err
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "failed"
    assert [stage["status"] for stage in summary["stages"]] == ["failed", *["not run"] * (len(STAGES) - 1)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_stages_too(tmp_path: Path, number: signal.Signals, code: int) -> None:
    process = _rest(tmp_path, "run", "--profile", "tiny", "--output", "run")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("artifacts/*/prepare-data")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = psutil.Process(process.pid).children(recursive=True)
    assert children
    process.send_signal(number)
    process.communicate(timeout=90)
    assert process.returncode == code
    _, alive = psutil.wait_procs(children, timeout=5)
    assert not alive
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["stages"][0]["status"]) == ("interrupted", "interrupted")
    assert summary["unsent"] == 0
    client = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    recorded = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert "KILLED" in {run.info.status for run in recorded} <= {"KILLED", "FAILED"}  # and none RUNNING


def _in_mlflow(folder: Path) -> dict[str, str]:
    """Status of each run in MLflow, by its name."""
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return {run.info.run_name: run.info.status for run in runs}


def test_a_killed_run_resumes_where_it_was(tmp_path: Path) -> None:
    settings = ("rl.steps=40", "rl.checkpoint_every=1", "bfcl.enabled=false", "api_bank.enabled=false")
    process = _rest(
        *(tmp_path, "run", "--profile", "tiny", "--output", "runs/one"),
        *(argument for setting in settings for argument in ("--set", setting)),
    )
    deadline = time.monotonic() + 300
    while not list((tmp_path / "runs/one").glob("artifacts/*/rest-rl/trained.training/step-*/")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    process.kill()
    process.communicate()
    for one in family[:-1]:
        one.suspend()  # the stage is to be there still, and no further
    refused = _rest(tmp_path, "run", "--resume", "runs/one")
    _, err = refused.communicate(timeout=60)
    assert refused.returncode == 2 and "still runs a stage of it" in err
    for one in family[:-1]:
        one.kill()
    psutil.wait_procs(family, timeout=10)

    resumed = _rest(tmp_path, "run", "--resume", "runs/latest")
    out, err = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, out + err
    assert "done before: prepare-data, " in out
    assert "▶ sft-warmup" not in out and "▶ rest-rl" in out
    tasks = [task.name for task in (tmp_path / "runs/one").glob("artifacts/*/*/")]
    assert sorted(tasks) == sorted(STAGES)  # each has run once, or has been taken up
    log = (tmp_path / "runs/one/log.txt").read_text(encoding="utf-8")
    assert "resuming after step" in log
    summary = json.loads((tmp_path / "runs/one/summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "succeeded"
    assert all(stage["seconds"] > 0 for stage in summary["stages"])
    statuses = _in_mlflow(tmp_path)
    assert statuses[summary["run"]] == "FINISHED"
    assert (statuses["rest-rl"], statuses["rest-rl (attempt 2)"]) == ("KILLED", "FINISHED")
    again = _rest(tmp_path, "run", "--resume", "runs/one")
    _, err = again.communicate(timeout=60)
    assert again.returncode == 2 and "has succeeded" in err
