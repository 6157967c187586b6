"""A stage as its command: what several processes run is what a user would type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml

from rest_core.config import Section

Command = Literal["sft", "train"]


def write_profile(path: Path, sections: Mapping[str, Section]) -> None:
    """Write sections of the configuration as a profile that `--profile` reads."""
    values = {name: section.model_dump(mode="json") for name, section in sections.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def arguments(
    command: Command,
    profile: Path,
    folders: Mapping[str, Path | str],
    *,
    pipeline_run: str,
    out: Path,
    trial: str | None = None,
) -> list[str]:
    """The command line of a stage, without the word `rest`."""
    inputs = [part for name, place in folders.items() for part in (f"--{name.replace('_', '-')}", str(place))]
    of_trial = [] if trial is None else ["--trial", trial]
    return [command, "--profile", str(profile), *inputs, "--out", str(out), "--run-name", pipeline_run, *of_trial]
