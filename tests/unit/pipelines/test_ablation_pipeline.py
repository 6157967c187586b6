"""The ablation's graph and YAML, and what a local run of it is surrounded by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compiled import compile_for
from google.protobuf import json_format
from rich.console import Console

from pipelines.ablation_pipeline import build
from pipelines.local_ablation import AblationSummary, show, stage_name
from pipelines.monitor import Monitor
from rest_core import config
from rest_core.ablation.ablation_report import AblationReport
from rest_core.ablation.settings import AblationConfig, Trial, parse_schemes, trials
from rest_core.errors import UserError
from rest_core.operations.catalogue import SECTIONS

SCHEMES = parse_schemes(["uniform", "paper"])
LOOP = "for-loop-1"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The pipeline spec, as a cluster gets it; where and how its pods run: test_placement.py."""
    compiled = compile_for(tmp_path_factory.mktemp("compiled"), {}, "ablation")
    return dict(json_format.MessageToDict(compiled.spec))


def _watched(spec: dict[str, Any]) -> dict[str, Any]:
    """The tasks inside of the exit handler."""
    outer = spec["root"]["dag"]["tasks"]
    (handler,) = set(outer) - {"report-status"}
    tasks: dict[str, Any] = spec["components"][outer[handler]["componentRef"]["name"]]["dag"]["tasks"]
    return tasks


def test_every_section_is_a_parameter(spec: dict[str, Any]) -> None:
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert set(parameters) == {*SECTIONS, "ablation", "trials", "pipeline_run"} - {"registry"}


def test_data_and_warm_up_are_shared_and_the_rest_is_done_for_each_trial(spec: dict[str, Any]) -> None:
    tasks = _watched(spec)
    once = {f"evaluate-{name}-{policy}" for name in ("bfcl", "api-bank") for policy in ("base", "warmup")}
    (loop,) = set(tasks) - {"preflight", "prepare-data", "sft-warmup", "aggregate"} - once
    assert tasks["prepare-data"]["dependentTasks"] == ["preflight"]
    assert tasks[loop]["dependentTasks"] == ["prepare-data", "sft-warmup"]
    assert tasks["aggregate"]["dependentTasks"] == [loop]
    inner = spec["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"]
    assert {name: task.get("dependentTasks", []) for name, task in inner.items()} == {
        "rest-rl": [],
        "evaluate-bfcl-trained": ["rest-rl"],
        "evaluate-api-bank-trained": ["rest-rl"],
    }


def test_no_task_in_the_loop_takes_a_parameter_that_another_task_made(spec: dict[str, Any]) -> None:
    """kfp.local puts the loop's item in its place without a word."""
    loop = next(task for task in _watched(spec).values() if "parameterIterator" in task)
    inner = spec["components"][loop["componentRef"]["name"]]["dag"]["tasks"]
    for task in (loop, *inner.values()):
        assert not any("taskOutputParameter" in given for given in task["inputs"].get("parameters", {}).values())


def test_trials_are_a_parameter_with_bounded_parallelism(spec: dict[str, Any]) -> None:
    trials_given = spec["root"]["inputDefinitions"]["parameters"]["trials"]
    assert trials_given["parameterType"] == "LIST"
    assert [(one["name"], one["seed"], one["weights"]["scheme"]) for one in trials_given["defaultValue"]] == [
        ("uniform", 0, "uniform"),
        ("paper", 0, "paper"),
        ("uniform", 1, "uniform"),
        ("paper", 1, "paper"),
    ]
    (loop,) = [task for task in _watched(spec).values() if "parameterIterator" in task]
    assert loop["iteratorPolicy"] == {"parallelismLimit": 2}
    item = loop["parameterIterator"]["itemInput"]
    inside = spec["components"][loop["componentRef"]["name"]]
    # A whole item of a list of structs: KFP's driver hands it on as it is, while a part of it would have to be text.
    assert inside["inputDefinitions"]["parameters"][item]["parameterType"] == "STRUCT"
    given = inside["dag"]["tasks"]["rest-rl"]["inputs"]["parameters"]["trial"]
    assert given == {"componentInputParameter": item}


def test_preflight_checks_the_trials_that_the_run_was_given(spec: dict[str, Any]) -> None:
    given = _watched(spec)["preflight"]["inputs"]["parameters"]
    for name in ("trials", "ablation"):
        assert given[name] == {"componentInputParameter": f"pipelinechannel--{name}"}


def test_what_would_fail_after_hours_is_not_compiled() -> None:
    with pytest.raises(UserError, match=r"ablation\.baseline=uniform: no trial has this scheme"):
        build(config.load("tiny"), schemes=parse_schemes(["paper"]), seeds=[0])


def test_what_a_scheme_replaces_besides_its_weights_travels_with_its_trial() -> None:
    other = "x={scheme: uniform, rl: {resample_rounds: 2, loss: {surrogate: cispo, dual_clip: null}}}"
    schemes, base = parse_schemes(["uniform", other]), config.load("tiny")
    pipeline = build(base, schemes=schemes, seeds=[0], ablation=AblationConfig(metric=base.gate.metric))
    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    given = spec["root"]["inputDefinitions"]["parameters"]["trials"]["defaultValue"]
    assert tuple(config.validate(Trial, one, where="trial") for one in given) == trials(schemes, [0])
    applied = trials(schemes, [0])[1].applied_to(base.rl)
    assert (applied.resample_rounds, applied.loss.dual_clip) == (2, None)


def test_the_monitor_finds_the_stages_of_a_loop(tmp_path: Path) -> None:
    every = trials(SCHEMES, [0])
    with Monitor(tmp_path, name=lambda task: stage_name(task, every)) as monitor:
        for place in ("prepare-data", f"{LOOP}-iteration-0/rest-rl", f"{LOOP}-iteration-1/rest-rl"):
            task = tmp_path / "ablation-2026" / place
            task.mkdir(parents=True)
            (task / "executor_output.json").touch()
    assert list(monitor.stages) == ["prepare-data", "rest-rl · uniform · seed 0", "rest-rl · paper · seed 0"]
    assert all(stage.done for stage in monitor.stages.values())


def test_the_summary_shows_figures_and_their_weakness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rest_core.ablation.collect import TrialResult

    (tmp_path / "report").mkdir()
    results = [TrialResult(trial, {"x": 1.0 + trial.seed}) for trial in trials(SCHEMES, [0, 1])]
    AblationReport("t", AblationConfig(metric="x", metrics=()), results).write(tmp_path / "report")
    summary = AblationSummary("r", "succeeded", 61.0, 2048.0, {}, str(tmp_path), "look", 7, f"rest sync {tmp_path}")
    show(summary, Console(width=100))
    out = capsys.readouterr().out
    assert "paper" in out
    assert "minus uniform" in out
    assert "2 seeds give very wide intervals" in out
    assert f"rest sync {tmp_path}" in out
    assert json.loads((tmp_path / "report" / "report.json").read_text())["settings"]["metric"] == "x"
