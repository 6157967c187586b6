"""The machine, the versions and the code that made a figure."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import psutil
import torch

from rest_core.manifest import git_commit

_PACKAGES = ("torch", "transformers", "accelerate", "trl", "datasets", "triton", "tokenizers")


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def all_cores() -> int:
    """Cores of the machine, whoever may use them."""
    return os.cpu_count() or 1


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"^model name\s*: (.+)$", lines, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def device_of(wanted: str) -> torch.device:
    """`auto`: the GPU where there is one."""
    return torch.device("cuda" if wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available()) else "cpu")


def short_name(device: torch.device) -> str:
    """For file names: `cpu`, or the GPU's name in lower case."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def describe(device: torch.device) -> dict[str, Any]:
    described: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": _versions(),
        "commit": git_commit(),
        "uncommitted_changes": _dirty(),
        "load_average": os.getloadavg(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        described["gpu"] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return described


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _dirty() -> bool | None:
    """Whether tracked files differ from the commit; None outside a checkout."""
    top = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["git", "-C", str(top), "status", "--porcelain", "--untracked-files=no"],
        capture_output=True,
        text=True,
        check=False,
    )
    return bool(done.stdout.strip()) if done.returncode == 0 else None
