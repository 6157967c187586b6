"""How many processes a stage runs in; the processes themselves run in tests/integration/test_nodes.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from rest_core.ablation.settings import Trial
from rest_core.config import LaunchConfig, ModelConfig, RlConfig, TrackingConfig, UniformWeights
from rest_core.errors import UserError
from rest_core.operations.launch import launcher
from rest_core.operations.launch.job import Job


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


@pytest.mark.parametrize(
    ("configured", "gpus", "most", "expected"),
    [(None, 0, None, 1), (None, 1, None, 1), (None, 8, None, 8), (None, 8, 1, 1), (2, 0, None, 2), (2, 8, 1, 2)],
)
def test_one_process_a_gpu_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, configured: int | None, gpus: int, most: int | None, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert launcher.processes(LaunchConfig(processes=configured), most) == expected


def test_a_process_that_was_launched_launches_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert launcher.processes(LaunchConfig(processes=4)) == 1


@pytest.mark.parametrize("sharding", ["ddp", "fsdp2"])
def test_there_is_a_configuration_for_every_way(sharding: str) -> None:
    config = yaml.safe_load(launcher.accelerate_config(sharding).read_text(encoding="utf-8"))
    assert config["distributed_type"] == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}[sharding]


def test_a_job_reads_back_what_it_was_made_of(tmp_path: Path) -> None:
    sections = {
        "model": ModelConfig(source="owner/name"),
        "rl": RlConfig(steps=7, mini_batch_prompts=None, weights={"scheme": "uniform"}),  # type: ignore[arg-type]
        "tracking": TrackingConfig(uri="http://mlflow:5000"),
    }
    trial = Trial(name="x", seed=3, weights=UniformWeights(), rl={"loss": {"dual_clip": None}})
    job = Job.of("rest-rl", sections, {"dataset": tmp_path, "policy": "owner/name"}, "a run", trial)
    again = Job.read(str(job.write(tmp_path / "deep" / "job.json")))
    assert again == job
    assert again.keywords() == {**sections, "trial": trial, "pipeline_run": "a run"}
    assert again.inputs == {"dataset": str(tmp_path), "policy": "owner/name"}


def test_what_an_earlier_attempt_has_left_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("error.json", "metrics.json", "manifest.json", "reference.json"):
        (out / name).write_text("{}")
    monkeypatch.setattr(launcher.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="ended with exit code 1"):
        launcher.run(Job.of("rest-rl", {}, {}, "run"), out=out, processes=2, sharding="ddp")
    assert not list(out.iterdir())


def test_signals_are_handled_for_as_long_as_the_block_lasts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[signal.Signals] = []
    with launcher.handling_signals(seen.append):
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
