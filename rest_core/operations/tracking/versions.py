"""Versions of the registry whose weights are used: the champion in evaluations, any of them in a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rest_core import storage
from rest_core.config import RegistryConfig, TrackingConfig
from rest_core.disk import disk_errors, written_aside
from rest_core.errors import UserError
from rest_core.operations.tracking import registry as models
from rest_core.operations.tracking import store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True)
class Version:
    """A registered version, and where its checkpoint lies."""

    name: str
    version: str
    run_id: str
    location: str  # a path, or a URI
    tracking_uri: str

    @property
    def title(self) -> str:
        return f"{self.name} version {self.version}"

    @property
    def identity(self) -> dict[str, str]:
        """Which weights these are; a version's never change."""
        return {"registered": self.title, "run": self.run_id, "store": self.tracking_uri}

    def fetch(self) -> Path:
        """The directory of its checkpoint, downloaded once where it lies elsewhere.

        Raises:
            UserError: it is not there, or cannot be downloaded.
        """
        if storage.is_s3(self.location):
            return storage.fetch(self.location, storage.cache_folder() / "models")
        if (place := store.local_path(self.location)) is not None:
            return place
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        target = storage.cache_folder() / "champions" / f"{self.run_id}-{self.version}"
        if not target.is_dir():
            with disk_errors(target), written_aside(target) as aside:
                aside.mkdir(parents=True)
                try:
                    download_artifacts(
                        artifact_uri=f"{self.location.rstrip('/')}/",
                        dst_path=str(aside),
                        tracking_uri=self.tracking_uri,
                    )
                except (MlflowException, OSError) as error:
                    raise UserError(f"{self.title}: cannot be downloaded: {store.reason(error)}") from error
        inner = [path.parent for path in target.rglob("config.json")]
        return inner[0] if inner else target


def champion(tracking: TrackingConfig, registry: RegistryConfig) -> Version | None:
    """The champion of a registered model; None where there is no such model, or it has none.

    Raises:
        UserError: MLflow does not answer.
    """
    client = store.connect(tracking)
    with store.refusals(client):
        if models.existing(client.get_registered_model, registry.name) is None:
            return None
        found = models.champion(client, registry.name)
        return None if found is None else located(client, found)


def registered_by(tracking: TrackingConfig) -> Callable[[str, str, str], bool]:
    """Tells whether a model (by name) has a version (by number) that a pipeline run (by name) has registered.

    Raises:
        UserError: MLflow does not answer.
    """
    client = store.connect(tracking)

    def registered(name: str, number: str, pipeline_run: str) -> bool:
        with store.refusals(client):
            found = models.existing(client.get_model_version, name, number)
        return found is not None and found.tags.get("pipeline_run") == pipeline_run

    return registered


def version(tracking: TrackingConfig, name: str, number: str) -> Version:
    """A version of a registered model, by its number or an alias.

    Raises:
        UserError: there is none, or MLflow does not answer.
    """
    client = store.connect(tracking)
    return located(client, models.get_version(client, name, number))


@store.asks
def located(client: MlflowClient, found: ModelVersion) -> Version:
    """Where a registered version's checkpoint lies."""
    return Version(
        name=found.name,
        version=str(found.version),
        run_id=str(found.run_id),
        location=models.location_of(client, found),
        tracking_uri=client.tracking_uri,
    )
