"""`rest compare` on directories and on a real store."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from counting_benchmark import Counting, Scripted, ids

from pipelines import cli
from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.evaluation.evaluate import evaluate
from rest_core.operations.tracking import store


def run(*arguments: object, tracking: TrackingConfig | None = None) -> Result:
    settings = {"uri": tracking.uri, "experiment": tracking.experiment} if tracking else {}
    options = [part for name, value in settings.items() for part in ("--set", f"tracking.{name}={value}")]
    return CliRunner().invoke(cli.cli, ["compare", *map(str, arguments), *options])


@pytest.fixture
def evaluated(tmp_path: Path) -> dict[str, Path]:
    policies = {"base": ids("easy", 0, 1), "rest": [*ids("easy", *range(1, 18)), "hard-0"]}
    places = {name: tmp_path / "runs" / name / "report" for name in policies}
    for name, right in policies.items():
        evaluate(Counting(), Scripted("model", right), out=places[name])
    return places


def test_directories_are_named_by_their_difference_and_logged_nowhere(
    evaluated: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*evaluated.values())
    assert result.exit_code == 0, result.output
    assert "rest - base" in result.output
    assert "+75.0 pp" in result.output
    (out,) = Path("runs").glob("comparison-*")
    assert {path.name for path in out.iterdir()} == {"comparison.html", "comparison.json", "comparison.md"}
    assert f"wrote {out / 'comparison.html'}" in result.output
    assert not Path("mlruns").exists()


def test_a_run_is_compared_with_a_directory_and_the_comparison_recorded(
    evaluated: dict[str, Path], tracking: TrackingConfig, tmp_path: Path
) -> None:
    client = store.open_client(store.resolve_uri(tracking))
    experiment = store.ensure_experiment(client, store.resolve_uri(tracking), tracking.experiment)
    tags = {"rest.stage": "evaluate-bfcl-trained", "rest.pipeline_run": "p", "rest.kind": "stage"}
    trained = client.create_run(experiment, tags=tags, run_name="evaluate-bfcl-trained").info.run_id
    client.log_artifacts(trained, str(evaluated["rest"]))
    client.set_terminated(trained)
    result = run(evaluated["base"], trained, "--out", tmp_path / "out", "--name", "a", "--name", "b", tracking=tracking)
    assert result.exit_code == 0, result.output
    (recorded,) = client.search_runs([experiment], "tags.`rest.stage` = 'compare'")
    assert {one.path for one in client.list_artifacts(recorded.info.run_id)} > {"comparison.html", "comparison.json"}
    assert recorded.data.metrics["comparison/counting/both/b - a/difference"] == pytest.approx((15 / 20 + 1 / 10) / 2)
    assert recorded.data.tags["rest.input/2"] == trained


def test_what_is_neither_directory_nor_reference_is_named(evaluated: dict[str, Path]) -> None:
    result = run(evaluated["base"], "runs/nowhere")
    assert isinstance(result.exception, UserError)
    assert "runs/nowhere: no directory, run id or model version" in str(result.exception)
