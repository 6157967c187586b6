"""What a component does around its stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl

from components.runtime import run_component
from rest_core import manifest
from rest_core.ablation.settings import Trial
from rest_core.config import PaperWeights, load
from rest_core.errors import EXIT_PREEMPTED, Preempted, UserError
from rest_core.operations.catalogue import CATALOGUE
from rest_core.operations.catalogue_entry import EVALUATED, Parameter, Stage
from rest_core.operations.pods import RUN_ID_VARIABLE
from rest_core.operations.result import StageResult

TRIAL = Trial(name="paper", seed=3, weights=PaperWeights())
PLAIN = Stage("toy", "toys:toy", "Play.", "cluster", sections=(), output="out", contents="toys")
Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def _no_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUN_ID_VARIABLE, raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs the component of a stage that ends in `ends`; returns the keywords that its function got."""

    def call(stage: Stage, ends: StageResult | Exception | None = None, **arguments: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def function(*, out: Path, **keywords: Any) -> StageResult:
            seen.update(keywords)
            out.mkdir(exist_ok=True)
            (out / "report.html").write_text("<p>", encoding="utf-8")
            if isinstance(ends, Exception):
                raise ends
            manifest.write(out, stage="toy", config={}, inputs={}, counts={})
            return ends or StageResult({})

        monkeypatch.setitem(CATALOGUE, "toy", stage)
        monkeypatch.setattr(Stage, "load", lambda _: function)
        outputs = {
            "out": dsl.Artifact(uri=str(tmp_path / "out")),
            "metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
        }
        run_component("toy", {"pipeline_run": "my run", **outputs, **arguments})
        return seen

    return call


def test_sections_folders_and_figures_reach_their_places(run: Run, tmp_path: Path) -> None:
    given = load("tiny").rl
    stage = replace(PLAIN, sections=("rl",), inputs=(("dataset", "prepare-data"),))
    out, metrics = dsl.Artifact(uri=str(tmp_path / "out")), dsl.Metrics(uri=str(tmp_path / "metrics"))
    seen = run(
        stage,
        StageResult({"reward": 1.5, "broken": float("nan")}),
        rl=given.to_parameter(),
        dataset=dsl.Dataset(uri=str(tmp_path / "data")),
        out=out,
        metrics=metrics,
    )
    assert seen == {"rl": given, "dataset": tmp_path / "data", "pipeline_run": "my run"}
    assert metrics.metadata["reward"] == 1.5
    assert "broken" not in metrics.metadata  # a NaN would make the executor's output unreadable
    assert metrics.metadata["stage/peak_rss_mib"] > 10
    assert json.loads(Path(metrics.path).read_text(encoding="utf-8")) == metrics.metadata
    assert out.metadata["sha256"] == manifest.read(tmp_path / "out")["sha256"]


def test_the_run_is_that_of_the_pod_where_none_is_given(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="pipeline_run is empty"):
        run(PLAIN, pipeline_run="")
    monkeypatch.setenv(RUN_ID_VARIABLE, "0f3c")
    assert run(PLAIN, pipeline_run="")["pipeline_run"] == "0f3c"


def test_a_pod_does_not_track_on_its_own_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and the registered model would be lost with the pod."""
    monkeypatch.setenv(RUN_ID_VARIABLE, "0f3c")
    stage = replace(PLAIN, part="shared", sections=("tracking",))
    with pytest.raises(UserError, match=r"this pod's own disk: set tracking\.uri"):
        run(stage, tracking={})
    run(replace(stage, part="cluster"), tracking={})  # preflight reports it, with all that is wrong besides
    assert run(stage, tracking={"uri": "http://mlflow:5000"})["tracking"].uri == "http://mlflow:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://db/mlflow")
    run(stage, tracking={})


def test_a_wrong_section_is_refused_and_the_cost_logged_all_the_same(run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rl: unknown key 'stepz'; did you mean 'steps'\?"):
        run(replace(PLAIN, sections=("rl",)), rl={"stepz": 1})
    assert "stage/seconds" in json.loads((tmp_path / "metrics").read_text(encoding="utf-8"))


def test_a_stop_ends_with_the_code_that_means_again(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(PLAIN, Preempted("SIGTERM: left after step 3 of 9"))
    assert ended.value.code == EXIT_PREEMPTED
    assert "stage/seconds" in json.loads((tmp_path / "metrics").read_text(encoding="utf-8"))


def test_a_page_is_shown_also_when_the_stage_fails(run: Run, tmp_path: Path) -> None:
    stage = replace(PLAIN, page=("report.html", "HTML"))
    with pytest.raises(UserError, match="after the report"):
        run(stage, UserError("after the report"), page=dsl.HTML(uri=str(tmp_path / "page")))
    assert (tmp_path / "page").read_text(encoding="utf-8") == "<p>"


def test_reports_of_the_benchmarks_come_as_evaluations(run: Run, tmp_path: Path) -> None:
    names = [f"{benchmark}_{policy}" for benchmark in ("bfcl", "api_bank") for policy in ("base", "trained")]
    reports = {name: dsl.Artifact(uri=str(tmp_path / name)) for name in names}
    stage = replace(PLAIN, reads_evaluations=("base", "trained"))
    assert run(stage, **reports)["evaluations"] == {
        policy: {benchmark: tmp_path / f"{benchmark}_{policy}" for benchmark in ("bfcl", "api_bank")}
        for policy in ("base", "trained")
    }
    many = run(stage, **{name: [report, report] for name, report in reports.items()})
    assert many["evaluations"]["base"]["bfcl"] == [tmp_path / "bfcl_base"] * 2


def test_an_evaluation_gets_the_policy_that_it_measures(run: Run) -> None:
    assert run(replace(PLAIN, evaluated=EVALUATED[0])) == {"pipeline_run": "my run", "evaluated": "base"}


def test_trials_are_read_one_by_one_and_an_empty_one_is_none(run: Run) -> None:
    settings = "rest_core.ablation.settings"
    stage = replace(
        PLAIN,
        parameters=(
            ("trial", Parameter(f"{settings}:Trial", optional=True)),
            ("ablation", Parameter(f"{settings}:AblationConfig", optional=True)),
            ("trials", Parameter(f"{settings}:Trial", "list", optional=True)),
        ),
    )
    empty = {"trial": {}, "ablation": {}, "trials": []}
    assert run(stage, **empty) == {"pipeline_run": "my run"}
    one = TRIAL.to_parameter()
    seen = run(stage, **{**empty, "trial": one, "trials": [one]})
    assert (seen["trial"], seen["trials"]) == (TRIAL, (TRIAL,))
    with pytest.raises(UserError, match=r"trials\[1\]: seed"):
        run(stage, **{**empty, "trials": [one, {**one, "seed": -1}]})
