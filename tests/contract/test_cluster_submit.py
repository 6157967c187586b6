"""`rest submit`: its requests, none of which is sent twice."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from contract import generated
from fake_kfp import FakeKfp

from pipelines.cluster import submit
from pipelines.cluster.request import run_request
from pipelines.platform import Platform
from rest_core import config

Rest = Callable[..., Any]
IMAGE = f"registry.example/rest@sha256:{'a' * 64}"


@pytest.fixture
def platform_file(tmp_path: Path) -> Path:
    path = tmp_path / "platform.yaml"
    path.write_text(
        f"service_account: trainer\nimages: {{train: {IMAGE}}}\n"
        "stages: {default: {gpu: {count: 2}, memory: 64Gi}}\n",
        encoding="utf-8",
    )
    return path


def test_a_run_is_created_in_its_experiment(at_server: Rest, kfp_server: FakeKfp, platform_file: Path) -> None:
    outcome = at_server("submit", "--profile", "tiny", "--set", "rl.seed=7", "--platform", str(platform_file))
    assert outcome.code == 0, outcome
    [run_id] = kfp_server.runs
    [experiment] = kfp_server.experiments.values()
    run = kfp_server.runs[run_id]
    assert experiment["display_name"] == "rest"
    assert run["experiment_id"] == experiment["experiment_id"]
    assert re.fullmatch(r"tiny-paper-seed7-\d{8}-\d{6}", run["display_name"])
    assert run["service_account"] == "trainer"
    assert run["runtime_config"]["parameters"]["rl"]["seed"] == 7
    assert run["runtime_config"]["parameters"]["model"]["source"] == "embedded:tiny-random"
    executors = run["pipeline_spec"]["pipeline_spec"]["deploymentSpec"]["executors"]
    assert executors["exec-rest-rl"]["container"]["image"] == IMAGE
    assert executors["exec-rest-rl"]["container"]["resources"]["accelerator"]["resourceCount"] == "2"
    assert outcome.out.splitlines() == [
        f"submitted {run['display_name']}",
        run_id,
        f"{kfp_server.url}/#/runs/details/{run_id}",
    ]


@pytest.mark.parametrize("command", [("submit",), ("schedule", "create", "--every", "1d")])
def test_the_cache_may_be_left_out(at_server: Rest, command: tuple[str, ...]) -> None:
    arguments = (*command, "--profile", "tiny", "--pipeline", "ablation", "--dry-run")
    assert "enableCache: true" in at_server(*arguments).out
    assert "enableCache: true" not in at_server(*arguments, "--no-cache").out


def test_the_example_platform_is_sent_as_kfp_reads_it(at_server: Rest, kfp_server: FakeKfp) -> None:
    example = Path(__file__).resolve().parents[2] / "deploy/platform.yaml"
    assert at_server("submit", "--profile", "qwen3-1.7b", "--platform", str(example)).code == 0
    [sent] = kfp_server.sent("POST", "/runs")
    executors = sent.body["pipeline_spec"]["platform_spec"]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert "rest-s3" in str(executors["exec-rest-rl"])


def test_links_lead_to_the_pages_that_the_platform_names(at_server: Rest, tmp_path: Path) -> None:
    file = tmp_path / "platform.yaml"
    file.write_text("kfp_url: https://kfp.example/pipeline/\n", encoding="utf-8")
    out = at_server("submit", "--profile", "tiny", "--platform", str(file)).out
    assert "https://kfp.example/pipeline/#/runs/details/" in out


def test_an_ablation_is_a_run_of_its_pipeline(at_server: Rest, kfp_server: FakeKfp) -> None:
    arguments = ("--pipeline", "ablation", "--scheme", "paper", "--scheme", "uniform", "--seeds", "3,4,5")
    assert at_server("submit", "--profile", "tiny", *arguments, "--baseline", "uniform", "--upload").code == 0
    [run] = kfp_server.runs.values()
    [pipeline] = kfp_server.pipelines.values()
    assert pipeline["display_name"] == "rest-ablation"
    assert re.fullmatch(r"tiny-ablation-2x3-\d{8}-\d{6}", run["display_name"])
    trials = run["runtime_config"]["parameters"]["trials"]
    assert [(trial["name"], trial["seed"]) for trial in trials] == [
        (name, seed) for seed in (3, 4, 5) for name in ("paper", "uniform")
    ]


def test_settings_of_an_ablation_are_refused_for_one_training(at_server: Rest, kfp_server: FakeKfp) -> None:
    assert "belong to --pipeline ablation" in at_server("submit", "--profile", "tiny", "--seeds", "1,2").error
    assert (
        "no trial has this scheme"
        in at_server("submit", "--profile", "tiny", "--pipeline", "ablation", "--scheme", "paper").error
    )
    assert kfp_server.requests == []


def test_what_was_there_is_used(at_server: Rest, kfp_server: FakeKfp) -> None:
    for _ in range(2):
        assert at_server("submit", "--profile", "tiny", "--upload", "--experiment", "mine").code == 0
    assert len(kfp_server.sent("POST", "/experiments")) == 1
    assert len(kfp_server.sent("POST", "/pipelines")) == 1
    assert len(kfp_server.sent("POST", "/upload_version")) == 1
    [version] = kfp_server.versions.values()
    first, second = kfp_server.runs.values()
    for run in (first, second):
        assert run["pipeline_version_reference"]["pipeline_version_id"] == version["pipeline_version_id"]
        assert "pipeline_spec" not in run
        assert run["runtime_config"]["parameters"]["rl"]["steps"] == 2
    at_server("submit", "--profile", "tiny", "--upload", "--experiment", "mine", "--set", "rl.steps=3")
    assert len(kfp_server.versions) == 2


def test_parameters_come_from_profile_and_set_in_this_order(at_server: Rest, kfp_server: FakeKfp) -> None:
    changes = ("--set", "rl.steps=9", "--set", "rl.weights={scheme: uniform}", "--data", "s3://b/x.jsonl")
    at_server("submit", "--profile", "tiny", *changes)
    [run] = kfp_server.runs.values()
    parameters = run["runtime_config"]["parameters"]
    assert parameters["rl"]["steps"] == 9
    assert parameters["rl"]["weights"] == {"scheme": "uniform"}
    assert parameters["sft"]["max_steps"] == 2
    assert parameters["data"]["sources"][0]["location"] == "s3://b/x.jsonl"
    assert run["display_name"].startswith("tiny-uniform-seed0-")


def test_a_dry_run_prints_what_would_be_sent_and_sends_nothing(
    rest: Rest, at_server: Rest, kfp_server: FakeKfp, platform_file: Path
) -> None:
    arguments = ("submit", "--profile", "tiny", "--platform", str(platform_file), "--name", "mine")
    outcome = rest(*arguments, "--dry-run")
    assert (outcome.code, outcome.err, kfp_server.requests) == (0, "", [])
    printed = yaml.safe_load(outcome.out)
    assert at_server(*arguments).code == 0
    [sent] = kfp_server.sent("POST", "/runs")
    changing = ("description", "experiment_id")
    assert {k: v for k, v in printed["run"].items() if k not in changing} == {
        k: v for k, v in sent.body.items() if k not in changing
    }
    assert printed["experiment"] == "rest"


@pytest.mark.parametrize(
    "more", [(), ("--pipeline", "ablation", "--scheme", "uniform", "--scheme", "paper")], ids=["rest", "ablation"]
)
def test_two_dry_runs_can_be_compared_and_load_no_torch(more: tuple[str, ...]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "pipelines.cli", "submit", "--profile", "tiny", "--dry-run"]
    one, other = (subprocess.run([*command, *more, "--name", "x"], capture_output=True, text=True) for _ in range(2))
    assert one.returncode == 0, one.stderr[-2000:]
    changing = re.compile(r"; [0-9a-f]{12}$", re.MULTILINE)
    assert changing.sub("", one.stdout) == changing.sub("", other.stdout)
    # It answers within seconds, which torch alone takes.
    loaded = set(re.findall(r"\| +(\w+)$", one.stderr, re.MULTILINE))
    assert "kfp" in loaded and not loaded & {"torch", "transformers", "datasets", "mlflow", "matplotlib"}


@pytest.mark.parametrize("profile", config.profiles())
def test_parameters_say_what_the_profile_says(profile: str) -> None:
    settings = config.load(profile)
    parameters = run_request(settings, Platform()).runtime_config.parameters
    assert parameters.pop("pipeline_run") == ""
    for name, values in parameters.items():
        section = getattr(settings, name)
        assert config.validate(type(section), values, where=name) == section


def test_the_version_is_what_the_run_would_carry(at_server: Rest, kfp_server: FakeKfp) -> None:
    assert at_server("submit", "--profile", "tiny", "--upload").code == 0
    [sent] = kfp_server.sent("POST", "/upload_version")
    request = run_request(config.load("tiny"), Platform())
    assert list(yaml.safe_load_all(sent.body["uploadfile"])) == list(request.pipeline_spec.values())


@pytest.mark.parametrize("after", [False, True], ids=["lost request", "lost answer"])
@pytest.mark.parametrize(
    "how", ["drop", "half", "hang", "page", "garbage", 500, 502, 503, 504, b"", b"null", b"[]", b"{}"]
)
def test_a_run_is_never_sent_twice(at_server: Rest, kfp_server: FakeKfp, how: int | str | bytes, after: bool) -> None:
    kfp_server.fail("POST", "/runs", how, after=after)
    outcome = at_server("submit", "--profile", "tiny", "--timeout", "0.5")
    assert len(kfp_server.sent("POST", "/runs")) == 1
    if after:
        assert outcome.code == 0, outcome
        [run_id] = kfp_server.runs
        assert run_id in outcome.out
    else:
        assert "it is not known whether it was carried out: see `rest status`" in outcome.error
        assert "try again" not in outcome.error


def test_a_run_of_the_same_name_is_not_taken_for_the_lost_one(at_server: Rest, kfp_server: FakeKfp) -> None:
    assert at_server("submit", "--profile", "tiny", "--name", "mine").code == 0
    kfp_server.fail("POST", "/runs", "drop")
    assert "not known" in at_server("submit", "--profile", "tiny", "--name", "mine").error


def test_where_the_lookup_fails_too_nothing_is_known(at_server: Rest, kfp_server: FakeKfp) -> None:
    kfp_server.fail("POST", "/runs", "drop", after=True)
    kfp_server.fail("GET", "/runs", 503, times=100)
    error = at_server("submit", "--profile", "tiny").error
    assert "gave no complete answer" in error and "it is not known whether it was carried out" in error
    assert len(kfp_server.sent("POST", "/runs")) == 1


@pytest.mark.parametrize("path", ["/experiments", "/pipelines", "/upload_version"])
@pytest.mark.parametrize("how", ["drop", 503, 409])
def test_experiment_pipeline_and_version_are_sent_once_too(
    at_server: Rest, kfp_server: FakeKfp, path: str, how: int | str
) -> None:
    """409: somebody else has just created it."""
    kfp_server.fail("POST", path, how, after=True)
    assert at_server("submit", "--profile", "tiny", "--upload").code == 0
    assert len(kfp_server.sent("POST", path)) == 1


def test_an_interrupted_submit_says_that_nothing_is_known(
    at_server: Rest, kfp_server: FakeKfp, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    kfp_server.fail("POST", "/runs", "drop")
    monkeypatch.setattr(submit.time, "sleep", interrupted)
    outcome = at_server("submit", "--profile", "tiny")
    assert outcome.code == 130
    assert outcome.err.startswith("interrupted before an answer came; it is not known whether it was carried out")


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (400, "with 400: made to fail with 400"),
        (401, "--token-file"),
        (403, "--namespace"),
        (404, "rest status"),
        (409, "another name"),
        (413, "size limit of the proxy"),
        ("redirect", "https://dex.example/auth"),
    ],
)
def test_a_refusal_is_one_line_and_not_repeated(
    at_server: Rest, kfp_server: FakeKfp, status: int | str, advice: str
) -> None:
    kfp_server.fail("POST", "/runs", status)
    error = at_server("submit", "--profile", "tiny").error
    assert kfp_server.url in error
    assert advice in error
    assert len(kfp_server.sent("POST", "/runs")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "tracking.uri=http://user:secret@host:5000"], "holds a password"),
        (["--data", __file__], "path of this machine"),
        (["--set", "rl.step=1"], "error: profile tiny: unknown key 'rl.step'"),
        (["--platform", "missing.yaml"], "missing.yaml: cannot be read"),
        (["--profile", "tinny"], "did you mean 'tiny'?"),
    ],
)
def test_what_cannot_be_submitted_is_said_before_anything_is_sent(
    at_server: Rest,
    kfp_server: FakeKfp,
    arguments: list[str],
    message: str,
) -> None:
    outcome = at_server("submit", "--profile", "tiny", *arguments)
    assert outcome.error
    assert message in outcome.err
    assert kfp_server.requests == []


@pytest.mark.parametrize("data", ["a" * 5000, "~nobody-of-this-name/x"])
def test_data_that_is_no_path_here_is_sent_as_it_is(rest: Rest, data: str) -> None:
    printed = yaml.safe_load(rest("submit", "--profile", "tiny", "--data", data, "--dry-run").out)
    assert printed["run"]["runtime_config"]["parameters"]["data"]["sources"][0]["location"] == data


def test_the_same_holds_against_the_generated_models(rest: Rest, platform_file: Path) -> None:
    """What a checkout without the official file tests with."""
    server = FakeKfp(generated())
    try:
        arguments = ("submit", "--profile", "tiny", "--upload", "--platform", str(platform_file), "--host", server.url)
        assert rest(*arguments).code == 0
        assert server.problems == []
    finally:
        server.close()
