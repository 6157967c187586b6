"""The commands of the trials for docs/evidence.md, and the rows that are collected from what they record."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import scheme_trials
from evidence.trials import collect
from mlflow import MlflowClient
from scheme_trials import LEARNING_RATES, PLAN, PROFILE, Trials

from rest_core.ablation.settings import parse_schemes
from rest_core.config import load
from rest_core.errors import UserError
from rest_core.operations.tracking import tags


class Started:
    """In place of `rest`: notes each command, and leaves what says that a stage is done."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.code = 0

    def __call__(self, command: list[str], *, env: dict[str, str], **_: Any) -> SimpleNamespace:
        assert not any(name.startswith("MLFLOW_") for name in env)
        self.commands.append(command[3:])
        for flag, value in pairwise(command):
            if flag == "--out" and not self.code:
                Path(value).mkdir(parents=True, exist_ok=True)
                (Path(value) / "manifest.json").write_text("{}", encoding="utf-8")
        return SimpleNamespace(returncode=self.code)


@pytest.fixture
def rest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    made = Started()
    monkeypatch.setattr(scheme_trials, "subprocess", SimpleNamespace(run=made))
    (tmp_path / "warm-up" / "data" / "rl").mkdir(parents=True)
    return made


def test_every_command_has_settings_that_a_configuration_takes(rest: Started, tmp_path: Path) -> None:
    trials = Trials(tmp_path, PROFILE, [])
    for part, seeds in PLAN.items():
        trials.run(part, seeds[:1])
    rates = set()
    for command in rest.commands:
        config = load(str(PROFILE), tuple(text for flag, text in pairwise(command) if flag == "--set"))
        rates.add(config.rl.learning_rate)
        parse_schemes(text for flag, text in pairwise(command) if flag == "--scheme")
    assert {float(rate) for rate in LEARNING_RATES} < rates
    names = [command[0] for command in rest.commands]
    assert names[:2] == ["prepare", "sft"] and names.count("ablate") == 2 and names.count("sft") == 4
    data = tmp_path / "sft" / "data-0"  # the split of RL in place of the warm-up's
    assert (data / "sft").is_dir() and (data / "rl").is_dir() and not (data / "manifest.json").exists()


def test_what_is_done_is_not_done_again(rest: Started, tmp_path: Path) -> None:
    Trials(tmp_path, PROFILE, []).run("learning-rates", [100])
    assert len(rest.commands) == len(LEARNING_RATES)
    Trials(tmp_path, PROFILE, []).run("learning-rates", [100])
    assert len(rest.commands) == len(LEARNING_RATES)
    with pytest.raises(UserError, match="made with other settings"):
        Trials(tmp_path, PROFILE, ["rl.steps=9"]).run("learning-rates", [100])


def test_a_command_that_fails_stops_the_part(rest: Started, tmp_path: Path) -> None:
    rest.code = 2
    with pytest.raises(UserError, match="rest train ended with 2"):
        Trials(tmp_path, PROFILE, []).run("learning-rates", [100])
    assert len(rest.commands) == 1


def test_an_ablation_resumes_and_ends(rest: Started, tmp_path: Path) -> None:
    out = tmp_path / "comparison" / "seed-3"
    out.mkdir(parents=True)
    (out / "run.json").write_text("{}", encoding="utf-8")
    Trials(tmp_path, PROFILE, []).run("comparison", [3])
    assert rest.commands == [["ablate", "--resume", str(out)]]
    (out / "summary.json").write_text(json.dumps({"status": "succeeded"}), encoding="utf-8")
    Trials(tmp_path, PROFILE, []).run("comparison", [3])
    assert len(rest.commands) == 1


def test_a_row_has_the_newest_training_and_its_evaluations(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    client = MlflowClient(f"sqlite:///{database}")
    experiment = client.create_experiment("e", artifact_location=str(tmp_path))
    common = {tags.KIND_TAG: "stage", tags.PIPELINE_RUN_TAG: "p", tags.SCHEME_TAG: "paper", tags.TRIAL_TAG: "paper · 3"}

    def run(stage: str, status: str, metrics: dict[str, float], start: int) -> None:
        stage_tags = common | {tags.STAGE_TAG: stage, tags.DTYPE_TAG: "float32"}
        made = client.create_run(experiment, start_time=start, tags=stage_tags).info.run_id
        for name, value in {"cfg/rl/seed": "3", "cfg/rl/learning_rate": "1e-05", "cfg/rl/steps": "2"}.items():
            client.log_param(made, name, value)
        for name, value in metrics.items():
            client.log_metric(made, name, value, step=1)
        if stage == "rest-rl":
            client.log_metric(made, "reward/total", 2.0, step=2)
            client.log_metric(made, "seconds/step", 3.0, step=1)
            client.log_metric(made, "seconds/step", 2.0, step=2)
        client.set_terminated(made, status, end_time=start + 5000)

    run("rest-rl", "KILLED", {"reward/total": 9.0}, 1)
    run("rest-rl", "FINISHED", {"reward/total": 1.0, "entropy/name": 0.5, "task/last/call_accuracy": 0.25}, 2)
    run("evaluate-bfcl-trained", "FINISHED", {"bfcl/call_accuracy": 0.75, "bfcl/low/call_accuracy": 0.5}, 3)
    (row,) = collect("comparison", database, "a CPU")
    assert (row["scheme"], row["seed"], row["machine"], row["seconds"]) == ("paper", 3, "a CPU, float32", 5)
    assert row["figures"] == {"bfcl/call_accuracy": 0.75, "task/last/call_accuracy": 0.25}
    assert row["curves"] == {"entropy/name": [0.5, None], "reward/total": [1.0, 2.0]}
