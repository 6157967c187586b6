"""The call of a stage as a file: what each process of a training gets, on this machine or on a node."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from rest_core import storage
from rest_core.ablation.settings import Trial
from rest_core.config import Config, Section, StorageConfig, validate
from rest_core.disk import disk_errors
from rest_core.operations import handoff

FILE_NAME = "job.json"


class Job(BaseModel):
    """A stage with typed sections and inputs; of a training on several nodes the inputs are references.

    Its files at the storage location, which is all that nodes share:

        <storage.location>/runs/<pipeline run>/<name>/job.json
                                                      result/    what the stage's folder holds in the end: a reference
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    sections: dict[str, dict[str, Any]]
    inputs: dict[str, handoff.Pointer | str]
    pipeline_run: str
    trial: Trial | None = None

    @classmethod
    def of(
        cls,
        stage: str,
        sections: Mapping[str, Section],
        inputs: Mapping[str, handoff.Pointer | Path | str],
        pipeline_run: str,
        trial: Trial | None = None,
    ) -> Self:
        """The call of `stage` with these sections and inputs."""
        return cls(
            stage=stage,
            sections={name: section.model_dump(mode="json") for name, section in sections.items()},
            inputs={
                name: place if isinstance(place, handoff.Pointer) else str(place) for name, place in inputs.items()
            },
            pipeline_run=pipeline_run,
            trial=trial,
        )

    def keywords(self) -> dict[str, Any]:
        """The stage function's keywords, but for inputs and `out`."""
        models: dict[str, Any] = {name: Config.model_fields[name].annotation for name in self.sections}
        typed: dict[str, Any] = {
            name: validate(models[name], values, where=f"{FILE_NAME}: {name}") for name, values in self.sections.items()
        }
        return typed | ({} if self.trial is None else {"trial": self.trial}) | {"pipeline_run": self.pipeline_run}

    @property
    def name(self) -> str:
        """A name for Kubernetes: the same for the same training of the same pipeline run, so that it is found again."""
        return f"{self.stage}-{hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]}"

    @property
    def place(self) -> str:
        """Where the job's files lie."""
        location = StorageConfig(**self.sections["storage"]).location
        assert location is not None
        return f"{handoff.scratch(location, self.pipeline_run)}/{self.name}"

    @property
    def result(self) -> str:
        """Where the first process leaves what the stage's folder holds in the end."""
        return f"{self.place}/result"

    def store(self) -> str:
        """Store the job at its place; returns where."""
        location = f"{self.place}/{FILE_NAME}"
        with tempfile.TemporaryDirectory() as folder:
            storage.put_file(self.write(Path(folder) / FILE_NAME), location)
        return location

    def write(self, file: Path) -> Path:
        """Write the job to a file of this machine."""
        with disk_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return file

    @classmethod
    def read(cls, location: str) -> Self:
        """The job at `location`, a path or a URI."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / FILE_NAME
            storage.get_file(location, file)
            return cls.model_validate_json(file.read_bytes())
