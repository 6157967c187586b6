"""The parent's end: child processes that wait, and rounds in which each of them does one step."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from rest_core.errors import UserError

from .work import Work

_HERE = Path(__file__).resolve().parent
_TOP = _HERE.parents[1]


class Arm:
    """One side with its settings, alive in a child process and asleep between its steps."""

    def __init__(self, name: str, spec: dict[str, Any]) -> None:
        self.name = name
        self._log = tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace")  # noqa: SIM115, closed by kill
        path = [str(_HERE.parent), str(_TOP), *filter(None, [os.environ.get("PYTHONPATH")])]
        threads = str(spec["threads"])
        environment = (
            # OpenMP waits as it does by default: workers spin for milliseconds, then sleep and leave the cores to the
            # other side. Sleeping at once makes every small operation of a decode step wait for its workers to wake.
            os.environ
            | {
                "PYTHONPATH": os.pathsep.join(path),
                "PYTHONUNBUFFERED": "1",
                "OMP_NUM_THREADS": threads,
                "MKL_NUM_THREADS": threads,
                "TOKENIZERS_PARALLELISM": "false",
                "HF_HUB_OFFLINE": "1",
                "TRL_EXPERIMENTAL_SILENCE": "1",
            }
        )
        if spec["device"] == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stepbench.child", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )

    def tell(self, word: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(word + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None

    def hear(self) -> dict[str, Any]:
        """The next answer; waits for it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._death()
        heard: dict[str, Any] = json.loads(line)
        return heard

    def step(self) -> dict[str, Any]:
        self.tell("step")
        return self.hear()

    def stop(self) -> None:
        self.tell("stop")
        self.hear()
        self._process.wait()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._log.close()

    def _death(self) -> UserError:
        code = self._process.wait()
        self._log.seek(0)
        lines = [line.rstrip() for line in self._log.read().splitlines() if line.strip()]
        sys.stderr.write("\n".join(["", *lines[-25:], ""]) + "\n")
        return UserError(f"{self.name} ended with code {code}: {lines[-1] if lines else 'it wrote nothing'}")


def run_rounds(
    specs: dict[str, dict[str, Any]],
    work: Work,
    *,
    warm_up: int,
    measured: int,
    say: Callable[[str], None],
    within: float = math.inf,
) -> dict[str, dict[str, Any]]:
    """All arms alive at once; in each round each does one step, and the order moves on by one from round to round.

    Args:
        within: seconds, loading included; a round that would not end in them is left out, but for the first measured.

    Returns, by arm: `settings`, and as the child gave them `ready`, `warm_up` and `steps` (the measured ones).

    Raises:
        UserError: a side died, or the two sides did not do the same work.
    """
    arms: list[Arm] = []
    found: dict[str, dict[str, Any]] = {}
    start = time.monotonic()
    try:
        for name, spec in specs.items():
            more = {"rounds": warm_up + measured, "work": work.to_dict(), "company": len(specs) > 1}
            arms.append(arm := Arm(name, spec | more))
            # One after the other, so that none loads while another measures.
            found[name] = {"settings": spec["settings"], "ready": arm.hear(), "warm_up": [], "steps": []}
            say(f"{name} is loaded ({found[name]['ready']['seconds']:.0f} s)")
        _require_same_prompts(found)
        begin = time.monotonic()
        for number in range(warm_up + measured):
            round_begin = time.monotonic()
            shift = number % len(arms)
            for arm in [*arms[shift:], *arms[:shift]]:
                before = _busy_seconds()
                step = arm.step()
                # What the rest of the machine did meanwhile: a figure from a busy machine shows itself.
                step["others_cpu"] = max(0.0, _busy_seconds() - before - step["cpu"])
                if not work.stops and step["generated"] != work.generated:
                    raise UserError(
                        f"{arm.name} generated {step['generated']} tokens where the work has {work.generated}: "
                        "the sides would not be comparable"
                    )
                found[arm.name]["warm_up" if number < warm_up else "steps"].append(step)
                what = "warm-up" if number < warm_up else f"step {number - warm_up + 1}/{measured}"
                say(f"{arm.name:<12} {what:<10} {step['wall']:8.2f} s (cpu {step['cpu']:.1f})  {_phases(step)}")
            spent = time.monotonic() - begin
            left = spent / (number + 1) * (warm_up + measured - number - 1)
            say(f"round {number + 1} of {warm_up + measured} done, about {left:.0f} s left for this work")
            now = time.monotonic()
            if warm_up <= number < warm_up + measured - 1 and now - start + (now - round_begin) > within:
                say(f"no time for another round within {within:.0f} s")
                break
        for arm in arms:
            arm.stop()
    finally:
        for arm in arms:
            arm.kill()
    return found


def ask(spec: dict[str, Any], name: str, say: Callable[[str], None]) -> dict[str, Any]:
    """One measurement in a child process that gives one answer, and progress before it."""
    arm = Arm(name, spec)
    try:
        while "progress" in (heard := arm.hear()):
            say(heard["progress"])
        return heard
    finally:
        arm.kill()


def _busy_seconds() -> float:
    """Processor seconds that all processes of the machine have used."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _phases(step: dict[str, Any]) -> str:
    return "  ".join(f"{name} {seconds:.2f}" for name, seconds in step["phases"].items() if seconds >= 0.005)


def _require_same_prompts(found: dict[str, dict[str, Any]]) -> None:
    prompts: Sequence[str] = [arm["ready"]["prompts"] for arm in found.values()]
    if len(set(prompts)) > 1:
        raise UserError("the sides were given different prompt ids; their tokenizers or chat templates differ")
