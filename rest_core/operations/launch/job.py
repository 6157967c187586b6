"""The description of a training on several nodes: all that they are told, as one file beside their results.

<storage.location>/runs/<pipeline run>/<job>/job.json
                                             result/    what the stage's folder holds in the end: a reference
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from rest_core import storage
from rest_core.config import ModelConfig, RlConfig, StorageConfig, TrackingConfig
from rest_core.operations import handoff

FILE_NAME = "job.json"


class Job(BaseModel):
    """What every node needs; inputs by reference, because nodes share nothing but the storage location."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: ModelConfig
    rl: RlConfig
    tracking: TrackingConfig
    storage: StorageConfig
    pipeline_run: str
    dataset: handoff.Pointer
    policy: handoff.Pointer
    trial: str | None = None  # of an ablation (`Trial.text`); `rl` has its settings

    @property
    def name(self) -> str:
        """A name for Kubernetes: the same for the same training of the same pipeline run, so that it is found again."""
        return f"rest-rl-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]}"

    @property
    def place(self) -> str:
        """Where the job's files lie."""
        assert self.storage.location is not None
        return f"{handoff.scratch(self.storage.location, self.pipeline_run)}/{self.name}"

    @property
    def result(self) -> str:
        """Where the first process leaves what the stage's folder holds in the end."""
        return f"{self.place}/result"

    def sections(self) -> dict[str, Any]:
        """The configuration of the command that every process runs."""
        return {"model": self.model, "rl": self.rl, "tracking": self.tracking, "storage": self.storage}

    def write(self) -> str:
        """Store the description; returns where."""
        location = f"{self.place}/{FILE_NAME}"
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / FILE_NAME
            file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
            storage.put_file(file, location)
        return location

    @classmethod
    def read(cls, location: str) -> Job:
        """The description at `location`."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / FILE_NAME
            storage.get_file(location, file)
            return cls.model_validate_json(file.read_bytes())
