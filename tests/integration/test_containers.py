"""The images as `make image` builds them, and the whole pipeline in them, as a user runs it (make test-containers)."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
import yaml
from lock_images import PARENTS, pinned
from packaging.utils import canonicalize_name

from components.images import TARGETS, image
from pipelines.containers import RUN_LABEL
from pipelines.mounts import INSTEAD_OF_ROOT
from pipelines.platform import Images
from rest_core import __version__
from rest_core.operations.catalogue import PIPELINE

STAGES = tuple(stage.name for stage in PIPELINE)
TOP = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 600
log = logging.getLogger(__name__)

pytestmark = [pytest.mark.containers, pytest.mark.slow]


def _make(*arguments: str) -> str:
    done = subprocess.run(["make", *arguments], cwd=TOP, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _python(target: str, program: str, *options: str) -> str:
    """What a program prints in a new container of an image."""
    command = ["docker", "run", "--rm", *options, image(target), "python3", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty cache, for this module alone, that containers in place of root may use."""
    folder = tmp_path_factory.mktemp("cache")
    folder.chmod(0o770)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder


def _rest(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", "--runner", "docker", "--profile", "tiny", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # models this small lose by threads
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_build_from_a_warm_cache_tells_sizes(images: dict[str, Any]) -> None:
    started = time.monotonic()
    out = _make("image")
    seconds = time.monotonic() - started
    log.info("make image from a warm cache: %.1f s\n%s", seconds, out)
    for target in TARGETS:
        (line,) = [line for line in out.splitlines() if line.startswith(image(target)) and "B" in line.split()[-1]]
        assert line.endswith(("MB", "GB"))
    sizes = {target: found.attrs["Size"] for target, found in images.items()}
    assert sizes["base"] < sizes["evaluate"] and sizes["base"] < sizes["train"]


def test_labels_and_user(images: dict[str, Any]) -> None:
    described = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(described, cwd=TOP, capture_output=True, text=True, check=True).stdout.strip()
    for target, found in images.items():
        labels = found.labels
        assert labels["org.opencontainers.image.revision"] == commit
        assert labels["org.opencontainers.image.version"] == __version__
        assert labels.get("rest-pipelines.accelerator") == (None if target == "base" else "cpu")
        assert found.attrs["Config"]["User"] == "1000:0"
        assert f"REST_GIT_COMMIT={commit}" in found.attrs["Config"]["Env"]


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_holds_its_lock_file_and_nothing_else(images: dict[str, Any], target: str) -> None:
    program = (
        "import importlib.metadata as m, json; print(json.dumps([(d.name, d.version) for d in m.distributions()]))"
    )
    held = {
        canonicalize_name(name): version.partition("+")[0] for name, version in json.loads(_python(target, program))
    }
    torch = pinned("torch.txt") if target != "base" else {}
    locked, name = {one: line.partition("==")[2] for one, line in torch.items()}, target
    while name is not None:
        locked |= {name: line.partition("==")[2] for name, line in pinned(f"{name}.txt").items()}
        name = PARENTS[name]
    assert held == locked | {"rest-pipelines": __version__}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("user", ["1234:5678", "54321:0"])
def test_any_user_has_a_home_a_name_and_caches(images: dict[str, Any], target: str, user: str) -> None:
    program = """
import getpass, os, pathlib, subprocess
assert os.getuid() not in (0, 1000)
print(getpass.getuser())
for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"):
    folder = pathlib.Path(os.environ[name])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "written").write_text("")
pathlib.Path("beside").write_text("")
from components.runtime import run_component

print(subprocess.run(["rest", "--version"], capture_output=True, text=True, check=True).stdout)
"""
    # Without a network: nothing is installed or fetched when a container starts.
    out = _python(target, program, "--user", user, "--network", "none")
    assert out.split() == ["rest", "rest,", "version", __version__]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, Any], small_api_bank: Path
) -> tuple[Path, dict[str, Any], str]:
    """A finished run in containers: the folder that it was started in, its summary, and what it printed."""
    folder = tmp_path_factory.mktemp("containers")
    small_api_bank.chmod(0o755)  # pytest's folders are for their owner alone
    process = _rest(folder, "--output", "runs/tiny", "--api-bank", str(small_api_bank))
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, out + err
    return folder, json.loads((folder / "runs/tiny/summary.json").read_text(encoding="utf-8")), out


def test_the_pipeline_runs_in_the_images(run: tuple[Path, dict[str, Any], str]) -> None:
    _, summary, out = run
    log.info("the tiny pipeline in containers: %.0f s\n%s", summary["seconds"], out)
    assert summary["status"] == "succeeded"
    off = {name for name in STAGES if name.endswith("-champion")}  # there is none yet
    assert [(stage["name"], stage["status"]) for stage in summary["stages"]] == [
        (name, "off" if name in off else "done") for name in STAGES
    ]
    metrics = {stage["name"]: stage["metrics"] for stage in summary["stages"]}
    assert metrics["prepare-data"]["data/rl"] > 0
    assert metrics["sft-warmup"]["sft/steps"] == 2
    assert metrics["rest-rl"]["rl/steps"] == 2
    assert metrics["evaluate-bfcl-trained"]["bfcl/count/simple_python"] == 2
    assert metrics["evaluate-api-bank-trained"]["api_bank/count/overall"] == 6
    assert metrics["compare-and-register"]["registry/version"] == 1
    # What a stage says of itself, and what the engine says of its container beside this program's own processes.
    for stage in summary["stages"]:
        assert stage["peak_rss_mib"] > 100
    assert summary["peak_rss_mib"] > metrics["rest-rl"]["stage/peak_rss_mib"] / 2


def test_each_stage_ran_in_its_image_as_an_ordinary_user(
    run: tuple[Path, dict[str, Any], str], images: dict[str, Any]
) -> None:
    folder, _, _ = run
    made = {
        path.parent.parent.name: json.loads(path.read_text(encoding="utf-8"))
        for path in folder.glob("runs/tiny/artifacts/*/*/*/manifest.json")
    }
    commit = images["base"].labels["org.opencontainers.image.revision"]
    assert {stage["git_commit"] for stage in made.values()} == {commit}
    packages = {name: set(stage["packages"]) for name, stage in made.items()}
    assert {"torch", "bfcl-eval"} <= packages["prepare-data"] and "peft" not in packages["prepare-data"]
    assert {"torch", "peft", "accelerate"} <= packages["rest-rl"] and "bfcl-eval" not in packages["rest-rl"]
    assert {"torch", "bfcl-eval"} <= packages["evaluate-bfcl-base"] and "peft" not in packages["evaluate-bfcl-base"]
    assert "kfp" in packages["compare-and-register"] and "torch" not in packages["compare-and-register"]
    user = int(INSTEAD_OF_ROOT.partition(":")[0]) if os.getuid() == 0 else os.getuid()
    owners = {path.stat().st_uid for path in folder.glob("runs/tiny/artifacts/*/**/*")}
    assert owners == {user} and user != 0


def test_mlflow_has_what_the_containers_recorded(run: tuple[Path, dict[str, Any], str]) -> None:
    from mlflow import MlflowClient

    folder, summary, _ = run
    client = MlflowClient(f"sqlite:///{folder}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("rest")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [one for one in runs if "mlflow.parentRunId" not in one.data.tags]
    assert parent.info.run_name == summary["run"]
    nested = {one.info.run_name: one for one in runs if one.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(nested) == set(STAGES)
    assert {one.info.status for one in runs} == {"FINISHED"}
    assert nested["rest-rl"].data.metrics["rl/steps"] == 2
    assert len(client.get_metric_history(nested["rest-rl"].info.run_id, "reward/total")) == 2
    assert summary["unsent"] == 0
    version = client.get_model_version_by_alias("rest-tiny", "challenger")
    assert str(version.version) == "1"
    files = {Path(one.path).name for one in client.list_artifacts(version.run_id or "", "model")}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files


def test_a_wrong_record_ends_in_one_line_a_hint_and_exit_code_2(tmp_path: Path, images: dict[str, Any]) -> None:
    record = {"messages": [{"role": "user", "content": "call f"}], "tools": [], "target": {"calls": []}}
    (tmp_path / "calls.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    stop = ("--set", "data.on_invalid=stop")
    process = _rest(tmp_path, "--data", "calls.jsonl", *stop, "--output", "run")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    error, hint = err.splitlines()
    assert error.startswith("error: prepare-data: ") and "calls.jsonl: line 1: field 'tools'" in error
    assert hint.startswith("resume it with: ") and hint.endswith(" run --resume run")
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "failed" and summary["stages"][0]["status"] == "failed"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_containers_at_once(
    tmp_path: Path, engine: docker.DockerClient, images: dict[str, Any], number: signal.Signals, code: int
) -> None:
    process = _rest(tmp_path, "--output", "run")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "run").glob("artifacts/*/prepare-data")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (before,) = engine.containers.list(filters={"label": RUN_LABEL})
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert before.id not in {container.id for container in engine.containers.list()}
    summary = json.loads((tmp_path / "run/summary.json").read_text(encoding="utf-8"))
    assert (summary["status"], summary["stages"][0]["status"]) == ("interrupted", "interrupted")


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """The address of an image registry of this test alone: the program of Debian's package docker-registry."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        address = f"localhost:{one.getsockname()[1]}"
    settings = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": address},
        "log": {"accesslog": {"disabled": True}},
    }
    (tmp_path / "registry.yml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen([program, "serve", str(tmp_path / "registry.yml")], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as one:
                if one.connect_ex(("localhost", int(address.partition(":")[2]))) == 0:
                    break
            assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "registry.log").read_text()
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=20)


def test_a_push_tells_digests_for_platform_yaml(
    engine: docker.DockerClient, images: dict[str, Any], registry: str, tmp_path: Path
) -> None:
    _make("push", f"REGISTRY={registry}/team", f"PUSHED={tmp_path}/images.yaml")
    written = yaml.safe_load((tmp_path / "images.yaml").read_text(encoding="utf-8"))
    references = Images.model_validate(written["images"])
    try:
        for target in TARGETS:
            reference = getattr(references, target)
            assert reference.startswith(f"{registry}/team/rest-pipelines-{target}@sha256:")
            assert engine.images.get_registry_data(reference).id == reference.partition("@")[2]
            # The next push of this version moves its tag; this one keeps the image from being cleaned up.
            commit = images[target].labels["org.opencontainers.image.revision"]
            own = f"{registry}/team/rest-pipelines-{target}:{__version__}-{commit}" + (
                "" if target == "base" else "-cpu"
            )
            assert engine.images.get_registry_data(own).id == reference.partition("@")[2]
    finally:
        for image in engine.images.list(filters={"reference": f"{registry}/team/*"}):
            for tag in image.tags:
                if tag.startswith(registry):
                    engine.images.remove(tag)
