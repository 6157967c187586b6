"""All checks together, and the stage around them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rest_core import stages
from rest_core.ablation.settings import AblationConfig, parse_schemes, trials
from rest_core.config import (
    Config,
    LaunchConfig,
    TrackingConfig,
    TrainJobConfig,
    load,
)
from rest_core.data import published
from rest_core.errors import UserError
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight import checks, mlflow_server
from rest_core.operations.preflight.findings import markdown, require_none, verdict
from rest_core.operations.preflight.surroundings import Asked, Mount, Secret, Surroundings
from rest_core.operations.tracking import runs
from rest_core.operations.tracking.delivery import deliver
from rest_core.operations.tracking.store import open_client
from rest_core.stages.cluster import PAGE_FILE

SURROUNDINGS = Surroundings(
    secrets=(Secret(name="keys", variables=("NO_SUCH_VARIABLE",)),),
    mounts=(Mount(claim="work", path="/work"),),
    asked=(Asked(stage="rest-rl", resource="nvidia.com/gpu", count=1),),
)


def sections(config: Config, tracking: TrackingConfig) -> dict[str, Any]:
    names = ("model", "data", "sft", "rl", "bfcl", "api_bank", "registry", "storage", "launch")
    return {**{name: getattr(config, name) for name in names}, "tracking": tracking}


@pytest.fixture
def config(tiny_checkpoint: Path) -> Config:
    return load("tiny", (f"model.source={tiny_checkpoint}", "api_bank.enabled=false"))


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a store on this disk pass for a server's, and send nothing from a process of its own."""

    class Idle:
        def __init__(self, *_: Any) -> None: ...

        def finish(self) -> bool:
            return True

    monkeypatch.setattr(runs, "Sender", Idle)
    monkeypatch.setattr(mlflow_server.store, "is_local", lambda uri: False)
    monkeypatch.setattr(mlflow_server.store, "is_server", lambda uri: True)
    monkeypatch.setattr(mlflow_server.store, "unreachable", lambda uri: None)
    monkeypatch.setattr(mlflow_server.store, "require_lasting", lambda *_: None)


def test_there_is_a_check_for_everything_that_the_run_uses(config: Config, tracking: TrackingConfig) -> None:
    values = sections(config, tracking)
    names = [name for name, _ in checks.list_checks(Config(**values), Surroundings())]
    assert names == ["MLflow", "model", "data"]
    places = load("tiny", ("storage.location=/runs", "registry.destination=/models", "rl.mirror=/mirror"))
    values |= {name: getattr(places, name) for name in ("storage", "registry", "rl", "api_bank")}
    values["launch"] = LaunchConfig(train_job=TrainJobConfig(nodes=2, runtime="rest-torch"))
    found = checks.list_checks(Config(**values), SURROUNDINGS, AblationConfig())
    assert [name for name, _ in found] == [
        *("Secret keys", "volume work", "storage.location", "registry.destination", "rl.mirror"),
        *("MLflow", "model", "data", "API-Bank", "nodes for rest-rl", "TrainJob", "trials"),
    ]


def outcomes(values: dict[str, Any], surroundings: Surroundings, **ablation: Any) -> dict[str, tuple[str, str]]:
    """What each check has found, MLflow aside."""
    listed = checks.list_checks(Config(**values), surroundings, **ablation)
    findings = checks.run_checks([(name, check) for name, check in listed if name != checks.MLFLOW])
    return {one.check: (one.outcome, one.detail) for one in findings}


def test_stages_that_ask_for_the_same_are_one_check(config: Config, tracking: TrackingConfig) -> None:
    asked = [Asked(stage=stage, cpu="2") for stage in ("prepare-data", "aggregate")]
    asked += [Asked(stage="rest-rl", cpu="2", count=1), Asked(stage="sft-warmup", cpu="2", count=1)]
    names = [
        name for name, _ in checks.list_checks(Config(**sections(config, tracking)), Surroundings(asked=tuple(asked)))
    ]
    assert names[-3:] == ["nodes for prepare-data, aggregate", "nodes for rest-rl", "nodes for sft-warmup"]


def test_checks_have_a_deadline_of_their_own() -> None:
    """The pod's is none for them: it begins before the image is pulled."""
    released = threading.Event()

    def hang() -> str:
        released.wait()
        return ""

    started = time.monotonic()
    findings = checks.run_checks([("a", lambda: "there"), ("b", hang), ("c", lambda: "there")], each=0.1)
    assert [one.outcome for one in findings] == ["ok", "problem", "ok"]
    assert "has not ended after 0 s: whatever it asks does not answer" in findings[1].detail
    findings = checks.run_checks([("b", hang), ("c", lambda: "there")], seconds=0.1)
    released.set()
    assert [one.outcome for one in findings] == ["problem", "not checked"]
    assert "the time for all checks (0.1 s) is over" in findings[1].detail
    assert time.monotonic() - started < 60


def test_a_checks_own_time_out_is_its_own(caplog: pytest.LogCaptureFixture) -> None:
    def check() -> str:
        raise TimeoutError("of a socket")

    (found,) = checks.run_checks([("a", check)])
    assert "of a socket" in found.detail


def test_what_lies_on_a_volume_is_left_to_the_stages(tracking: TrackingConfig) -> None:
    """Preflight mounts none: it would never start with one that is not bound."""
    settings = ("model.source=/work/model", "data.sources=[{location: '/work/data/*.jsonl'}]", "rl.mirror=/workshop")
    places = load("tiny", (*settings, "storage.location=/work", "api_bank.location=/work/api-bank"))
    found = outcomes(sections(places, tracking), Surroundings(mounts=(Mount(claim="claim", path="/work/"),)))
    for name in ("model", "data", "API-Bank", "storage.location"):
        outcome, detail = found[name]
        assert outcome == "not checked"
        assert "is on the volume claim, which preflight does not mount" in detail
    assert found["rl.mirror"][0] == "problem"


@pytest.mark.parametrize(("mounts", "outcome"), [((), "problem"), ((Mount(claim="cache", path="/c"),), "not checked")])
def test_what_no_server_gives_may_be_in_the_cache_on_a_volume(
    config: Config,
    tracking: TrackingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mounts: tuple[Mount, ...],
    outcome: str,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(published, "RAW_URL", "http://127.0.0.1:1")
    data = load("tiny", ("data.sources=[{location: 'published:toolrl/rlla_sft.json'}]",)).data
    found = outcomes(sections(config, tracking) | {"data": data}, Surroundings(mounts=mounts))
    assert found["data"][0] == outcome


@pytest.mark.parametrize(("enabled", "refused"), [(True, True), (False, False)])
def test_a_stage_that_was_compiled_without_its_gpu_cannot_be_switched_on(
    config: Config, tracking: TrackingConfig, enabled: bool, refused: bool
) -> None:
    values = sections(config, tracking) | {"sft": config.sft.model_copy(update={"enabled": enabled})}
    found = outcomes(values, Surroundings(without_gpu=("sft-warmup",)))
    assert ("GPU of sft-warmup" in found) == refused
    if refused:
        outcome, detail = found["GPU of sft-warmup"]
        assert outcome == "problem"
        assert detail.startswith("sft-warmup is switched on, but the pipeline was compiled with it off")


def test_trials_that_compare_nothing_are_a_problem(config: Config, tracking: TrackingConfig) -> None:
    values = sections(config, tracking)
    every = trials(parse_schemes(["uniform", "paper"]), [0])
    settings = AblationConfig(metric="reward/after")
    found = outcomes(values, Surroundings(), ablation=settings, trials=every)
    assert found["trials"] == ("ok", "2 schemes in 2 trials, compared by reward/after")
    found = outcomes(values, Surroundings(), ablation=settings, trials=every[1:])
    assert found["trials"][0] == "problem"
    assert "no trial has this scheme" in found["trials"][1]


def test_no_problem_hides_another() -> None:
    def fails(error: Exception) -> Callable[[], str]:
        def check() -> str:
            raise error

        return check

    findings = checks.run_checks(
        [
            ("a", fails(UserError("first\nproblem"))),
            ("b", lambda: "is there"),
            ("c", fails(NotAllowed("may not look"))),
            ("d", fails(ZeroDivisionError("of ours"))),
        ]
    )
    assert [(one.outcome, one.detail) for one in findings] == [
        ("problem", "first problem"),
        ("ok", "is there"),
        ("not checked", "may not look"),
        ("problem", "the check failed: ZeroDivisionError: of ours"),
    ]
    assert verdict(findings) == "2 problems in 4 checks"
    with pytest.raises(UserError) as told:
        require_none(findings)
    assert str(told.value).splitlines() == [
        "2 problems in 4 checks",
        "- a: first problem",
        "- d: the check failed: ZeroDivisionError: of ours",
    ]
    page = markdown(findings)
    assert page.index("| a |") < page.index("| c |") < page.index("| b |")
    assert verdict(findings[1:3]) == "all is there (2 checks, 1 could not be made)"
    require_none(findings[1:3])


def test_all_problems_come_in_one_error_without_a_gpu(
    config: Config, tracking: TrackingConfig, tmp_path: Path, shared: None, cluster: Any
) -> None:
    out = tmp_path / "report"
    cluster.forbidden.add("nodes")
    with pytest.raises(UserError) as told:
        stages.preflight(**sections(config, tracking), surroundings=SURROUNDINGS, pipeline_run="a run", out=out)
    lines = str(told.value).splitlines()
    assert lines[0] == "2 problems in 6 checks"
    assert [line.split(":")[0] for line in lines[1:]] == ["- Secret keys", "- volume work"]
    page = (out / PAGE_FILE).read_text(encoding="utf-8")
    assert page.startswith("# Preflight: 2 problems in 6 checks")
    assert "nodes for rest-rl | list nodes: the cluster refuses it (403" in page
    assert json.loads((out / "error.json").read_text(encoding="utf-8"))["message"] == str(told.value)
    deliver(out.with_name("report.tracking"), str(tracking.uri))
    client = open_client(str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    (recorded,) = [one for one in client.search_runs([experiment.experiment_id]) if one.info.run_name == "preflight"]
    assert recorded.info.status == "FAILED"
    assert "NO_SUCH_VARIABLE missing or empty" in recorded.data.tags["rest.error"]
    assert recorded.data.metrics["preflight/problems"] == 2
    assert PAGE_FILE in {found.path for found in client.list_artifacts(recorded.info.run_id)}


def test_without_problems_the_stage_passes(
    config: Config, tracking: TrackingConfig, tmp_path: Path, shared: None
) -> None:
    result = stages.preflight(
        **sections(config, tracking), surroundings=Surroundings(), pipeline_run="a run", out=tmp_path / "report"
    )
    assert result.metrics == {"preflight/problems": 0, "preflight/not_checked": 0, "preflight/ok": 3}
    assert set(result.states) == {"model", "data", "api_bank"}


def test_an_mlflow_that_is_away_is_one_problem_among_the_others(config: Config, tmp_path: Path, cluster: Any) -> None:
    away = TrackingConfig(uri="http://127.0.0.1:1")
    with pytest.raises(UserError) as told:
        stages.preflight(
            **sections(config, away), surroundings=SURROUNDINGS, pipeline_run="a run", out=tmp_path / "report"
        )
    assert [line.split(":")[0] for line in str(told.value).splitlines()[1:]] == [
        *("- Secret keys", "- volume work", "- MLflow")
    ]
    assert "does not answer" in (tmp_path / "report" / PAGE_FILE).read_text(encoding="utf-8")
    assert not (tmp_path / "report.tracking").exists()
