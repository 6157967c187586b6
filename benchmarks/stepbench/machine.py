"""The machine that made a figure, and the code of another commit."""

from __future__ import annotations

import importlib.metadata
import io
import os
import platform
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rest_core.errors import UserError
from rest_core.manifest import git_commit

TOP = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "transformers", "accelerate", "trl", "datasets", "triton", "tokenizers")
# Dense bf16 FLOP/s and bytes/s of the memory, from data sheets; the first that is part of the device's name counts.
_CARDS = {
    "H200": (989.5e12, 4.8e12),
    "H100 PCIe": (756e12, 2.0e12),
    "H100 NVL": (835e12, 3.9e12),
    "H100": (989.5e12, 3.35e12),
    "A100": (312e12, 1.555e12),
}


def describe(device: str) -> dict[str, Any]:
    """Names and versions, and of a known card what it can do at most."""
    processor = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*: (.+)$", processor.read_text() if processor.exists() else "", re.MULTILINE)
    versions = {found.name: found.version for found in importlib.metadata.distributions()}
    machine: dict[str, Any] = {
        "cpu": named[1] if named else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "packages": {name: versions[name] for name in _PACKAGES if name in versions},
        "commit": git_commit(),
    }
    if device == "cuda":
        machine["gpu"] = {"name": torch.cuda.get_device_name()}
        peaks = [peak for card, peak in _CARDS.items() if card in machine["gpu"]["name"]]
        machine |= {"peak": dict(zip(("flops", "bandwidth"), peaks[0], strict=True))} if peaks else {}
    return machine


@contextmanager
def checkout(revision: str) -> Iterator[tuple[Path, str]]:
    """A directory with the files of another commit, removed afterwards, and the commit's hash."""

    def git(*arguments: str) -> bytes:
        done = subprocess.run(["git", "-C", str(TOP), *arguments], capture_output=True, check=False)
        if done.returncode:
            raise UserError(f"--against {revision}: {done.stderr.decode().strip()}")
        return done.stdout

    commit = git("rev-parse", "--verify", f"{revision}^{{commit}}").decode().strip()
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(fileobj=io.BytesIO(git("archive", commit))) as files:
            files.extractall(directory, filter="data")
        yield Path(directory), commit
