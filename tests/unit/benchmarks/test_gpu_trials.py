"""Pairs of trainings as a GPU's script runs them, with a random model."""

from __future__ import annotations

import sys
from pathlib import Path

import gpu_trials
import pytest
from evidence.trials import read

from rest_core.data.store import save, to_row
from rest_core.records import Message, Sample, ToolCall
from rest_core.response import render

pytestmark = pytest.mark.usefixtures("fresh_accelerator")
SMALL = (
    "model.source=embedded:tiny-random",
    "model.dtype=float32",
    "sft.max_steps=1",
    "rl.group_size=2",
    "rl.max_response_tokens=8",
)


def test_pairs_are_written_as_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = render(think=None, calls=[ToolCall("add", {"n": 1})], response=None)
    samples = [Sample(f"test/{n}", "test", (Message("user", "one"),), (), reference) for n in range(3)]
    rows = [to_row(one, prompt_tokens=10, reference_tokens=10) for one in samples]
    save(dict.fromkeys(("sft", "rl", "rl_validation"), rows), tmp_path / "data")
    results = tmp_path / "trials.jsonl"
    arguments = ["--dataset", str(tmp_path / "data"), "--results", str(results), "--seeds", "2"]
    arguments += ["--prompts", "2", "--steps", "2", *(text for one in SMALL for text in ("--set", one))]
    monkeypatch.setattr(sys, "argv", ["gpu_trials.py", *arguments])
    assert gpu_trials.main() == 0
    found = read(results)
    assert [(one["scheme"], one["seed"]) for one in found] == [
        ("paper", 0),
        ("paper", 1),
        ("uniform", 0),
        ("uniform", 1),
    ]
    for one in found:
        assert len(one["curves"]["reward/total"]) == 2
        assert [step for step, _ in one["measured"]["task/accuracy"]] == [2]  # all start from one policy
        assert one["figures"]["task/last/accuracy"] == one["measured"]["task/accuracy"][-1][1]
