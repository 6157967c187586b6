"""The ablation's graph and YAML, and what a local run of it is surrounded by."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from compiled import compile_for
from google.protobuf import json_format
from kfp import dsl
from rich.console import Console

from components.aggregate.component import aggregate
from components.runtime import run_stage
from pipelines.ablation_pipeline import PARAMETERS, SHARED_STAGES, TRIAL_STAGES, build
from pipelines.local_ablation import AblationSummary, show, stage_name
from pipelines.monitor import Monitor
from rest_core import config, manifest, stages
from rest_core.ablation.ablation_report import AblationReport
from rest_core.ablation.settings import AblationConfig, Trial, parse_schemes, trials
from rest_core.config import PaperWeights
from rest_core.errors import UserError
from rest_core.stages import StageResult

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
    assert set(parameters) == {*PARAMETERS, "ablation", "trials", "pipeline_run"}


def test_data_and_warm_up_are_shared_and_the_rest_is_done_for_each_trial(spec: dict[str, Any]) -> None:
    tasks = _watched(spec)
    (loop,) = set(tasks) - {"preflight", *SHARED_STAGES}
    assert tasks["prepare-data"]["dependentTasks"] == ["preflight"]
    assert tasks[loop]["dependentTasks"] == ["prepare-data", "sft-warmup"]
    assert tasks["aggregate"]["dependentTasks"] == [loop]
    inner = spec["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"]
    assert set(inner) == set(TRIAL_STAGES)
    assert {name: task.get("dependentTasks", []) for name, task in inner.items()} == {
        "rest-rl": [],
        "evaluate-bfcl": ["rest-rl"],
        "evaluate-api-bank": ["rest-rl"],
    }


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


def test_what_a_scheme_replaces_besides_its_weights_travels_with_its_trial(tmp_path: Path) -> None:
    other = "x={scheme: uniform, rl: {resample_rounds: 2, loss: {surrogate: cispo, dual_clip: null}}}"
    schemes, base = parse_schemes(["uniform", other]), config.load("tiny")
    pipeline = build(base, schemes=schemes, seeds=[0], ablation=AblationConfig(metric=base.registry.metric))
    spec = json_format.MessageToDict(pipeline.pipeline_spec)
    given = spec["root"]["inputDefinitions"]["parameters"]["trials"]["defaultValue"]
    assert _run({"trials": given}, {}, tmp_path)["trials"] == trials(schemes, [0])
    applied = trials(schemes, [0])[1].applied_to(base.rl)
    assert (applied.resample_rounds, applied.loss.dual_clip) == (2, None)


def test_the_component_is_a_thin_wrapper_of_its_stage() -> None:
    source = Path(inspect.getfile(aggregate.python_func)).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    assert set(aggregate.component_spec.inputs) == set(inspect.signature(stages.aggregate).parameters) - {"out"}


def test_a_report_is_shown_by_the_file_that_it_is(tmp_path: Path) -> None:
    def stage(*, out: Path, **_: Any) -> StageResult:
        out.mkdir()
        (out / "report.html").write_text("<p>", encoding="utf-8")
        raise UserError("after the report")

    out, metrics, page = (dsl.Artifact(uri=str(tmp_path / name)) for name in ("out", "metrics", "page"))
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    pages = {"report.html": page, "report.md": dsl.Artifact(uri=str(tmp_path / "other"))}
    with pytest.raises(UserError, match="after the report"):
        run_stage(stage, sections={}, pipeline_run="r", out=out, metrics=metrics, pages=pages)
    assert (tmp_path / "page").read_text(encoding="utf-8") == "<p>"
    assert not (tmp_path / "other").exists()


def _run(sections: dict[str, Any], folders: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def stage(*, out: Path, **arguments: Any) -> StageResult:
        seen.update(arguments)
        out.mkdir()
        manifest.write(out, stage="test", config={}, inputs={}, counts={})
        return StageResult({})

    out, metrics = dsl.Artifact(uri=str(tmp_path / "out")), dsl.Metrics(uri=str(tmp_path / "metrics"))
    run_stage(stage, sections=sections, pipeline_run="r", folders=folders, out=out, metrics=metrics)
    return seen


def test_a_stage_gets_its_trial_and_lists_of_folders(tmp_path: Path) -> None:
    trial = Trial(name="paper", seed=3, weights=PaperWeights())
    reports = [dsl.Artifact(uri=str(tmp_path / name)) for name in ("a", "b")]
    seen = _run({"trial": trial.to_parameter()}, {"bfcl": reports}, tmp_path)
    assert seen == {"trial": trial, "bfcl": [tmp_path / "a", tmp_path / "b"], "pipeline_run": "r"}


def test_without_a_trial_there_is_none(tmp_path: Path) -> None:
    assert _run({"trial": {}, "ablation": {}, "trials": []}, {}, tmp_path) == {"trials": (), "pipeline_run": "r"}


def test_the_trials_that_a_run_was_given_are_read_one_by_one(tmp_path: Path) -> None:
    trial = Trial(name="paper", seed=3, weights=PaperWeights())
    assert _run({"trials": [trial.to_parameter()]}, {}, tmp_path)["trials"] == (trial,)
    with pytest.raises(UserError, match=r"trials\[1\]: seed"):
        _run({"trials": [trial.to_parameter(), {**trial.to_parameter(), "seed": -1}]}, {}, tmp_path)


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
    summary = AblationSummary("r", "succeeded", 61.0, 2048.0, {}, str(tmp_path), "look", 7)
    show(summary, Console(width=100))
    out = capsys.readouterr().out
    assert "paper" in out
    assert "minus uniform" in out
    assert "2 seeds give very wide intervals" in out
    assert f"rest sync {tmp_path}" in out
    assert json.loads((tmp_path / "report" / "report.json").read_text())["settings"]["metric"] == "x"
