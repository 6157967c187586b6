"""How many processes a stage runs in; the processes themselves run in tests/integration/test_nodes.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
import yaml

from rest_core.config import LaunchConfig, ModelConfig, RlConfig, TrackingConfig, load
from rest_core.errors import UserError
from rest_core.operations.launch import launcher
from rest_core.operations.launch.command import arguments, write_profile


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


def test_the_command_reads_the_sections_back(tmp_path: Path) -> None:
    sections = {
        "model": ModelConfig(source="owner/name"),
        "rl": RlConfig(steps=7, mini_batch_prompts=None, weights={"scheme": "uniform"}),  # type: ignore[arg-type]
        "tracking": TrackingConfig(uri="http://mlflow:5000"),
    }
    write_profile(tmp_path / "deep" / "call.yaml", sections)
    config = load(str(tmp_path / "deep" / "call.yaml"))
    assert {name: getattr(config, name) for name in sections} == sections
    line = arguments("train", Path("call.yaml"), {"dataset": "d", "policy": "p"}, pipeline_run="a run", out=Path("o"))
    given = "train --profile call.yaml --dataset d --policy p --out o --run-name"
    assert line == [*given.split(), "a run"]


def test_what_an_earlier_attempt_has_left_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = ("error.json", "metrics.json", "manifest.json", "reference.json")
    for name in stale:
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(launcher.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="ended with exit code 1"):
        launcher.run("train", {}, {}, pipeline_run="run", out=tmp_path, processes=2, sharding="ddp")
    assert not list(tmp_path.iterdir())


def test_signals_are_handled_for_as_long_as_the_block_lasts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[signal.Signals] = []
    with launcher.handling_signals(seen.append):
        os.kill(os.getpid(), signal.SIGTERM)
    assert seen == [signal.SIGTERM]
    assert signal.getsignal(signal.SIGTERM) is before
