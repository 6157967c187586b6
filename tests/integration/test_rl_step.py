"""benchmarks/rl_step.py on a tiny model: real children, real steps; no figure of time is looked at."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "rl_step.py"
_SIZE = ["--steps", "2", "--prompts", "2", "--prompt-tokens", "400", "--new-tokens", "8", "--threads", "1"]


def _run(model: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(_SCRIPT), "--work", "a", "--device", "cpu", "--model", str(model)]
    return subprocess.run(
        [*command, *_SIZE, "--output", str(out), *options], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "arms",
    [
        "ours",
        pytest.param(
            "ours,trl-best",
            marks=pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="trl is not installed"),
        ),
    ],
)
def test_sides_do_the_same_work(tiny_checkpoint: Path, tmp_path: Path, arms: str) -> None:
    done = _run(tiny_checkpoint, tmp_path, "--arms", arms)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "rl_step-cpu.json").read_text(encoding="utf-8"))
    sides = report["works"]["a"]["arms"]
    assert set(sides) == set(arms.split(","))
    for name, side in sides.items():
        steps = side["samples"]["steps"]
        assert len(steps) == 2
        for step in steps:
            assert step["generated"] == 2 * 4 * 8
            assert sum(step["phases"].values()) == pytest.approx(step["wall"])
            assert min(step["phases"][phase] for phase in ("rollout", "update", "optimizer")) > 0
            assert step["memory"]["rss"] > 50 * 2**20
            # Ours: each prompt once; a response's last token is no input.
            assert step["body_tokens"] == (2 * 400 + 2 * 4 * 7 if name == "ours" else 2 * 4 * 408)
    for step in sides["ours"]["samples"]["steps"]:
        assert step["check"]["grad_norm"] > 0  # the rewards differ within each group: there is something to learn
    assert (tmp_path / "rl_step-cpu.png").stat().st_size > 10_000
    assert "a: 2 prompts of 400 tokens, G = 4, 8 new tokens each" in done.stdout


@pytest.mark.slow
def test_a_side_that_dies_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = _run(tiny_checkpoint, tmp_path, "--arms", "ours", "--ours", "{no_such_field: 1}")
    assert done.returncode == 2
    assert "error: ours ended with code 1" in done.stderr
    assert "no_such_field" in done.stderr
