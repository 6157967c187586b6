"""Seconds of a forward and backward pass on an idle and on a busy machine, by what OpenMP's threads do while they wait.

    python benchmarks/busy_machine.py [--rounds 3] [--tokens 355]

`passive` is what this project sets (`rest_core/__init__.py`), `active` is torch's default. The machine is made busy by
one process that counts. Two rows of SmolLM2-135M on two threads in float32; rounds take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from statistics import median
from typing import Any

MODEL = "embedded:smollm2-135m-instruct"
POLICIES = ("active", "passive")


def child(tokens: int) -> None:
    """Print the seconds of the fastest of three passes."""
    import torch

    from rest_core.config import ModelConfig
    from rest_core.model.loading import load_model

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = load_model(MODEL, ModelConfig(source=MODEL))
    ids = torch.randint(0, model.config.vocab_size, (2, tokens))
    passes = []
    for _ in range(3):
        start = time.perf_counter()
        model(input_ids=ids, labels=ids).loss.backward()
        passes.append(time.perf_counter() - start)
    sys.stdout.write(f"\n{min(passes)}\n")


def measure(policy: str, busy: bool, tokens: int) -> float:
    """Seconds of a pass in a process of its own."""
    counting = [sys.executable, "-c", "while True: pass"]
    other = subprocess.Popen(counting) if busy else None
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--child", "--tokens", str(tokens)],
            env={**os.environ, "OMP_WAIT_POLICY": policy},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    finally:
        if other is not None:
            other.kill()
            other.wait()
    return float(done.stdout.split()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=355, help="of each of the two rows")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.tokens)
        return 0
    from stepbench.machine import describe

    cases = [(busy, policy) for busy in (False, True) for policy in POLICIES]
    seconds: dict[tuple[bool, str], list[float]] = {case: [] for case in cases}
    for _ in range(options.rounds):
        for busy, policy in cases:
            seconds[busy, policy].append(measure(policy, busy, options.tokens))
    report: dict[str, Any] = {"machine": describe("cpu"), "tokens": 2 * options.tokens}
    for (busy, policy), found in seconds.items():
        report.setdefault("busy" if busy else "idle", {})[policy] = {"median": median(found), "all": found}
    sys.stdout.write(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
