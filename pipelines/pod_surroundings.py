"""What the pods of a run have around them: volumes, Secrets, and as whom they run."""

from __future__ import annotations

from pydantic import Field, model_validator

from pipelines.kubernetes_values import Claim, MountPath, Name, SubPath, UserId
from rest_core import storage
from rest_core.config import Section


class Volume(Section):
    """A PersistentVolumeClaim that is there already."""

    claim: Claim
    path: MountPath = Field(description="where it is mounted")
    sub_path: SubPath = Field("", description="the folder of the volume that is mounted; empty = all of it")

    def holds(self, place: str) -> bool:
        """Whether a folder lies on it."""
        return f"{place.rstrip('/')}/".startswith(f"{self.path.rstrip('/')}/")


class Volumes(Section):
    model_cache: Volume | None = Field(None, description="downloaded checkpoints, kept between runs")
    work: Volume | None = Field(None, description="work space that all pods share")

    def keep(self, location: str) -> bool:
        """Whether a storage location is a folder of the work space, not s3://."""
        return not storage.is_s3(location) and self.work is not None and self.work.holds(location)

    @model_validator(mode="after")
    def _two_claims_at_two_places(self) -> Volumes:
        if not (self.model_cache and self.work):
            return self
        if self.model_cache.path.rstrip("/") == self.work.path.rstrip("/"):
            raise ValueError(f"model_cache and work are both mounted at {self.work.path}; give each a path of its own")
        if self.model_cache.claim == self.work.claim:
            raise ValueError(
                f"model_cache and work are the same claim ({self.work.claim}), which KFP cannot mount twice in a pod; "
                "leave model_cache out: downloads then go to the work volume's folder .cache"
            )
        return self


class Secrets(Section):
    """Names of Secrets; their keys are the environment variables' names (`deploy/secrets.example.yaml`)."""

    s3: Name | None = None
    hugging_face: Name | None = None
    mlflow: Name | None = None


class SecurityContext(Section):
    run_as_non_root: bool = True
    run_as_user: UserId | None = Field(None, description="null = the image's, or what the cluster assigns")
    run_as_group: UserId | None = None

    @model_validator(mode="after")
    def _root_is_root(self) -> SecurityContext:
        if self.run_as_non_root and self.run_as_user == 0:
            raise ValueError("run_as_user 0 is root, which run_as_non_root forbids: no pod would start; change one")
        return self
