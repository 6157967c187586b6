"""Training stages in several processes, for real: by the stage itself, and by Kubeflow Trainer's local backends."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from components.images import image
from rest_core import manifest, stages, storage
from rest_core.ablation.settings import Trial
from rest_core.config import (
    LaunchConfig,
    ModelConfig,
    RewardFunction,
    RlConfig,
    SftConfig,
    StorageConfig,
    TrackingConfig,
    TrainJobConfig,
    UniformWeights,
)
from rest_core.data import store
from rest_core.errors import Preempted, UserError
from rest_core.model import loading
from rest_core.operations import policies
from rest_core.operations.launch import launcher, train_job, trainer
from rest_core.operations.launch.job import Job
from rest_core.records import Message, Sample

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RL = RlConfig(
    steps=2,
    prompts_per_step=2,
    group_size=4,
    max_response_tokens=16,
    learning_rate=0.01,
    reward="rest",
    reward_probe_prompts=0,
    checkpoint_every=1,
)
REWARD = """
import os, time

def slow(completion_ids, **kwargs):
    time.sleep(0.5)
    return [float(ids[0] % 5) for ids in completion_ids]

def broken_on_one(completion_ids, **kwargs):
    return [float("nan") if os.environ["RANK"] == "1" else 1.0 for _ in completion_ids]

def killed_on_one(completion_ids, **kwargs):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), 9)
    return [1.0 for _ in completion_ids]
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nodes") / "dataset"
    samples = [Sample(f"test/{n}", "test", (Message("user", f"Say {n}"),), (), "words") for n in range(4)]
    rows = [store.to_row(sample, prompt_tokens=10, reference_tokens=10) for sample in samples]
    store.save({"sft": rows, "sft_validation": rows[:1], "rl": rows, "rl_validation": rows[:1]}, folder)
    manifest.write(folder, stage="prepare-data", config={}, inputs={}, counts={})
    return folder


@pytest.fixture(autouse=True)
def _surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes on the CPU, which find this checkout and the reward functions."""
    (tmp_path / "rewards.py").write_text(REWARD)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(tmp_path)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def model(tiny_checkpoint: Path) -> ModelConfig:
    return ModelConfig(source=str(tiny_checkpoint), dtype="float32")


def recorded(tracking: TrackingConfig) -> list[Any]:
    client = MlflowClient(str(tracking.uri))
    experiment = client.get_experiment_by_name(tracking.experiment)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return [run for run in runs if run.data.tags.get("rest.stage") == "rest-rl"]


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_a_stage_trains_in_two_processes(
    sharding: Any, model: ModelConfig, tracking: TrackingConfig, dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    launch = LaunchConfig(processes=2, sharding=sharding)
    common: dict[str, Any] = {"tracking": tracking, "pipeline_run": "run", "dataset": dataset, "launch": launch}
    location = StorageConfig(location=str(tmp_path / "volume"))
    checkpoints = tmp_path / "volume" / "runs" / "run" / "checkpoints"
    sft = SftConfig(max_steps=1, batch_size=2, micro_batch_size=2, checkpoint_every=1)
    for attempt in ("sft", "sft again, on another machine"):
        out = tmp_path / attempt
        warmed = stages.sft_warmup(model=model, sft=sft, out=out, storage=location, **common)
        assert warmed.metrics["sft/steps"] == 1
        (copied,) = checkpoints.glob("sft-warmup-*/checkpoint-1")
        assert {path.name for path in copied.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}
    out = tmp_path / "rl"
    trial = Trial(name="plain", seed=3, weights=UniformWeights())
    result = stages.rest_rl(
        model=model, rl=RL, policy=tmp_path / "sft", out=out, storage=location, trial=trial, **common
    )
    assert result.metrics["rl/steps"] == 2
    made = manifest.read(out)
    assert made["stage"] == "rest-rl" and made["inputs"]["policy"] == manifest.read(tmp_path / "sft")["sha256"]
    assert made["config"]["rl"]["mirror"] is None  # where this run's checkpoints went is none of its settings
    assert list(checkpoints.glob("*/step-000002/state.json"))
    # An ablation tells its trainings apart by this, however many processes they run in.
    assert Trial.model_validate(made["config"]["trial"]) == trial
    assert RlConfig.model_validate(made["config"]["rl"]).weights == trial.weights and made["config"]["rl"]["seed"] == 3
    assert {path.name for path in out.iterdir()} == {"manifest.json", "metrics.json", "reference.json"}
    loading.load_model(policies.fetched(out), model)
    (run,) = recorded(tracking)
    assert run.info.status == "FINISHED" and run.data.tags["rest.scheme"] == "plain"
    # The checkpoints that a retry would go on from are in the run's own place, and the next run does not find them.
    assert any("/step-000002/" in name for name in storage.list_files(f"{tmp_path}/volume/runs/run/checkpoints"))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        ("broken_on_one", "process 1: reward function broken_on_one: a reward of nan"),
        ("killed_on_one", "rest-rl: its 2 processes ended with exit code"),
    ],
)
def test_a_failure_comes_back_as_one_line(
    function: str, told: str, model: ModelConfig, tracking: TrackingConfig, dataset: Path, tmp_path: Path
) -> None:
    rl = RL.model_copy(update={"reward_functions": (RewardFunction(function=f"rewards:{function}"),)})
    with pytest.raises(UserError, match=told) as error:
        stages.rest_rl(
            model=model,
            rl=rl,
            tracking=tracking,
            pipeline_run="run",
            dataset=dataset,
            policy=model.source,
            out=tmp_path / "rl",
            launch=LaunchConfig(processes=2),
        )
    assert "\n" not in str(error.value)
    assert json.loads((tmp_path / "rl" / "error.json").read_text())["message"] == str(error.value)


def test_sigterm_is_passed_on_and_the_stage_goes_on_where_it_was(
    model: ModelConfig, tracking: TrackingConfig, dataset: Path, tmp_path: Path
) -> None:
    rl = RL.model_copy(update={"steps": 6, "reward_functions": (RewardFunction(function="rewards:slow"),)})
    arguments: dict[str, Any] = {
        "model": model,
        "rl": rl,
        "tracking": tracking,
        "pipeline_run": "run",
        "dataset": dataset,
        "policy": model.source,
        "out": tmp_path / "rl",
        "launch": LaunchConfig(processes=2),
    }

    def stop() -> None:
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob("rl.training/step-*/state.json")) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Preempted) as told:
        stages.rest_rl(**arguments)
    stopper.join()
    assert told.value.exit_code == 75
    left = sorted(path.name for path in tmp_path.glob("rl.training/step-*"))
    assert left and left[-1] != "step-000006"
    assert stages.rest_rl(**arguments).metrics["rl/steps"] == 6
    first, second = sorted(recorded(tracking), key=lambda run: run.info.start_time)
    assert "attempt 2" in second.info.run_name
    assert second.data.metrics.keys() >= first.data.metrics.keys() & {"reward/total"}


@pytest.mark.parametrize(("sharding", "fsdp"), [("ddp", None), ("fsdp2", "true")])
def test_the_environment_is_that_of_accelerate_launch(sharding: str, fsdp: str | None, tmp_path: Path) -> None:
    """Held against what `accelerate launch` itself gives to a process."""
    seen, config = tmp_path / "seen.json", launcher.accelerate_config(sharding)
    script = tmp_path / "script.py"
    script.write_text(f"import json, os; json.dump(dict(os.environ), open({str(seen)!r}, 'w'))")
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(config), "--num_processes", "2", str(script)]
    subprocess.run(
        [sys.executable, *launch], check=True, capture_output=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    given = {
        name: value for name, value in json.loads(seen.read_text()).items() if name.startswith(("ACCELERATE_", "FSDP_"))
    }
    assert trainer.accelerate_environment(config) == given
    assert given.get("ACCELERATE_USE_FSDP") == fsdp


def training_job(
    model: ModelConfig, tracking: TrackingConfig, location: str, dataset: Path, policy: Path, trial: Trial | None = None
) -> Job:
    """The call of rest-rl that a TrainJob runs."""
    sections = {"model": model, "rl": RL, "tracking": tracking, "storage": StorageConfig(location=location)}
    return Job.of("rest-rl", sections, {"dataset": dataset, "policy": policy}, "run", trial)


@pytest.fixture
def kubeflow() -> Any:
    return pytest.importorskip("kubeflow.trainer", reason="the package kubeflow is not installed")


def torch_of_this_environment(folder: Path) -> str:
    """A wheel that gives the SDK's virtual environment what is installed here, and the command `torchrun`.

    The SDK would install torch there; it takes this in its place, and nothing is downloaded.
    """
    version = importlib.metadata.version("torch")
    name, info = f"torch-{version}-py3-none-any.whl", f"torch-{version}.dist-info"
    paths = [str(ROOT), str(folder), *(path for path in sys.path if path.endswith("site-packages"))]
    files = {
        "environment.pth": "\n".join(paths) + "\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\ntorchrun = torch.distributed.run:main\n",
    }
    with zipfile.ZipFile(folder / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
        wheel.writestr(f"{info}/RECORD", "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"]))
    return f"torch @ {(folder / name).as_uri()}"


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_the_sdks_local_backend_trains_in_two_processes(
    sharding: Any,
    kubeflow: Any,
    model: ModelConfig,
    tracking: TrackingConfig,
    dataset: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trainer, "_POLL_SECONDS", 1.0)
    package = torch_of_this_environment(tmp_path)

    class Client(kubeflow.TrainerClient):  # type: ignore[misc]
        def train(self, *, runtime: Any, trainer: Any, options: Any) -> str:  # type: ignore[override]
            given = dataclasses.replace(trainer, packages_to_install=[package])
            return str(super().train(runtime=runtime, trainer=given, options=options))

    client = Client(kubeflow.LocalProcessBackendConfig())
    kept = ("PATH", "HOME", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "XDG_CACHE_HOME")
    environment = {
        **{name: os.environ[name] for name in kept},
        "PIP_NO_INDEX": "1",
        "PET_NPROC_PER_NODE": "2",
        "PET_STANDALONE": "1",  # a free port
    }
    settings = TrainJobConfig(nodes=1, runtime="torch-distributed", environment=environment)
    location = str(tmp_path / "volume")
    out = tmp_path / "rl"
    result = train_job.run(
        training_job(
            model, tracking, location, dataset, tiny_checkpoint, Trial(name="plain", seed=0, weights=RL.weights)
        ),
        out=out,
        launch=LaunchConfig(sharding=sharding, train_job=settings),
        client=client,
    )
    assert result.metrics["rl/steps"] == 2
    assert client.list_jobs() == []
    loading.load_model(policies.fetched(out), model)
    assert manifest.read(out)["inputs"]["dataset"] == manifest.read(dataset)["sha256"]
    assert manifest.read(out)["config"]["trial"]["name"] == "plain"
    (run,) = recorded(tracking)
    assert run.info.status == "FINISHED" and run.data.tags["rest.scheme"] == "plain"


@pytest.mark.containers
def test_the_sdks_container_backend_trains_on_two_nodes(
    kubeflow: Any,
    images: dict[str, Any],
    dataset: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kubeflow.trainer.backends.container import utils
    from kubeflow.trainer.backends.container.types import TrainingRuntimeSource

    monkeypatch.setattr(trainer, "_POLL_SECONDS", 1.0)
    # The SDK mounts one folder into every container, as /workspace, the working folder: the storage location is in it,
    # and relative, so that it is the same place inside and outside. The containers' user is another than this one.
    workspace = tmp_path / "workspace"
    before = os.umask(0)
    workspace.mkdir()
    # The SDK starts a login shell there, which forgets the image's PATH.
    (workspace / ".profile").write_text("PATH=/opt/venv/bin:$PATH\n")
    monkeypatch.setattr(utils, "create_workdir", lambda name: str(workspace))
    monkeypatch.chdir(workspace)
    runtimes = TrainingRuntimeSource(sources=[str(ROOT / "deploy" / "training-runtime.yaml")])
    backend = kubeflow.ContainerBackendConfig(pull_policy="Never", auto_remove=False, runtime_source=runtimes)
    client = kubeflow.TrainerClient(backend)
    settings = TrainJobConfig(
        nodes=2,
        runtime="rest-torch",
        image=image("train"),
        environment={"HOME": "/workspace", "XDG_CACHE_HOME": "/workspace/cache", "OMP_NUM_THREADS": "1"},
    )
    model = ModelConfig(dtype="float32")
    tracking = TrackingConfig(uri="sqlite:////workspace/mlflow.db", experiment="test")
    out = tmp_path / "rl"
    try:
        result = train_job.run(
            training_job(model, tracking, "storage", dataset, tiny_checkpoint),
            out=out,
            launch=LaunchConfig(sharding="fsdp2", train_job=settings),
            client=client,
        )
    finally:
        os.umask(before)
    assert result.metrics["rl/steps"] == 2
    assert client.list_jobs() == []
    loading.load_model(policies.fetched(out), model)
    assert manifest.read(out)["inputs"]["dataset"] == manifest.read(dataset)["sha256"]
    (run,) = recorded(TrackingConfig(uri=f"sqlite:///{workspace}/mlflow.db", experiment="test"))
    assert run.info.status == "FINISHED"
    assert sorted(path.name for path in workspace.glob("rest-rl-*/*")) == ["0", "1"]  # a process on each
