"""The registry's champion, for an evaluation beside what is new."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rest_core import storage
from rest_core.config import RegistryConfig, TrackingConfig
from rest_core.disk import disk_errors, written_aside
from rest_core.errors import UserError
from rest_core.operations.tracking import registry as models
from rest_core.operations.tracking import store


@dataclass(frozen=True)
class Champion:
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
                except MlflowException as error:
                    raise UserError(f"{self.title}: cannot be downloaded: {store.reason(error)}") from error
        inner = [path.parent for path in target.rglob("config.json")]
        return inner[0] if inner else target


def find(tracking: TrackingConfig, registry: RegistryConfig) -> Champion | None:
    """The champion of a registered model; None where there is no such model, or it has none.

    Raises:
        UserError: MLflow does not answer.
    """
    client = store.connect(tracking)
    if models.existing(client.get_registered_model, registry.name) is None:
        return None
    version = models.champion(client, registry.name)
    if version is None:
        return None
    return Champion(
        name=registry.name,
        version=str(version.version),
        run_id=str(version.run_id),
        location=models.location_of(client, version),
        tracking_uri=client.tracking_uri,
    )
