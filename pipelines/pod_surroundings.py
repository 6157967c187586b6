"""What the pods of a run have around them: volumes, Secrets, and as whom they run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pydantic import Field, model_validator

from pipelines.kubernetes_values import (
    Claim,
    Memory,
    MountPath,
    Name,
    Setting,
    SubPath,
    UserId,
    Variable,
    VolumeName,
)
from rest_core import storage
from rest_core.config import Section
from rest_core.credentials import has_credentials


class Volume(Section):
    """A PersistentVolumeClaim that is there already."""

    claim: Claim
    path: MountPath = Field(description="where it is mounted")
    sub_path: SubPath = Field("", description="the folder of the volume that is mounted; empty = all of it")

    def holds(self, place: str) -> bool:
        """Whether a folder lies on it."""
        return f"{place.rstrip('/')}/".startswith(f"{self.path.rstrip('/')}/")


class Scratch(Section):
    """Room that each pod which works has for itself, and that is gone with it."""

    size: Memory
    path: MountPath = Field("/scratch", description="where it is mounted; TMPDIR, and the cache where no volume is one")
    storage_class: Name | None = Field(
        None, description="of a volume that is made for each pod; null = the node's disk"
    )


class Volumes(Section):
    model_cache: Volume | None = Field(None, description="downloaded checkpoints, kept between runs")
    work: Volume | None = Field(None, description="work space that all pods share")
    scratch: Scratch | None = Field(None, description="room of each pod's own")

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


class _Source(Section):
    """A ConfigMap or a Secret that is there already."""

    config_map: Name | None = None
    secret: Name | None = None

    @property
    def name(self) -> str:
        return str(self.config_map or self.secret)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.config_map is None) == (self.secret is None):
            raise ValueError("give config_map or secret, and not both")
        return self


class Variables(_Source):
    """Environment variables that have the names of its keys."""

    keys: tuple[Variable, ...] = Field(min_length=1)


class Files(_Source):
    """A folder with a file a key."""

    config_map: VolumeName | None = None
    secret: VolumeName | None = None
    path: MountPath


# Keys of the Secrets, which are the variables' names: what a Secret must have, and what it may have.
REQUIRED_KEYS = {
    "s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "hugging_face": ("HF_TOKEN",),
    "mlflow": ("MLFLOW_TRACKING_URI",),
    "webhook": ("REST_WEBHOOK_URL",),
}
OPTIONAL_KEYS = {
    "s3": ("AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"),
    "hugging_face": (),
    "mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    "webhook": ("REST_WEBHOOK_FORM", "REST_WEBHOOK_WHEN"),
}
_OPEN_KEYS = ("AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME")
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE")

# Of KFP and Argo in every pod.
_OTHERS_VOLUMES = ("kfp-launcher", "gcs-scratch", "s3-scratch", "minio-scratch", "var-run-argo", "tmp-dir-argo")
_OTHERS_PATHS = ("/kfp-launcher", "/gcs", "/s3", "/minio", "/argo", "/var/run/argo", "/.cache", "/.config", "/.local")
SCRATCH, SHM = "scratch", "shm"  # names of the pods' own volumes


class Secrets(Section):
    """Names of Secrets; their keys are the environment variables' names (`deploy/secrets.example.yaml`)."""

    s3: Name | None = None
    hugging_face: Name | None = None
    mlflow: Name | None = None
    webhook: Name | None = None


class SecurityContext(Section):
    run_as_non_root: bool = True
    run_as_user: UserId | None = Field(None, description="null = the image's, or what the cluster assigns")
    run_as_group: UserId | None = None

    @model_validator(mode="after")
    def _root_is_root(self) -> SecurityContext:
        if self.run_as_non_root and self.run_as_user == 0:
            raise ValueError("run_as_user 0 is root, which run_as_non_root forbids: no pod would start; change one")
        return self


class PodSurroundings(Section):
    """The part of platform.yaml that every pod of a run has around it; a TrainJob's nodes too, but for `env_from`."""

    env: dict[Variable, Setting] = Field({}, description="environment variables; no Secrets")
    env_from: tuple[Variables, ...] = Field((), description="environment variables from ConfigMaps and Secrets")
    files: tuple[Files, ...] = Field((), description="ConfigMaps and Secrets as folders")
    ca_bundle: MountPath | None = Field(
        None, description="a file below `files`: the authorities of all HTTPS, in place of the public ones"
    )
    security_context: SecurityContext = SecurityContext()
    secrets: Secrets = Secrets()
    volumes: Volumes = Volumes()

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables of every pod, those from elsewhere aside."""
        return {**self.env, **dict.fromkeys(CA_VARIABLES if self.ca_bundle else (), self.ca_bundle or "")}

    @model_validator(mode="after")
    def _each_variable_once(self) -> Self:
        of_secrets = {key for keys in (*REQUIRED_KEYS.values(), *OPTIONAL_KEYS.values()) for key in keys}
        for name, value in self.env.items():  # not by the values' own type, whose errors would show them
            if has_credentials(value):
                raise ValueError(
                    f"env: {name} holds a password, which would stand in the pipeline: give it in env_from, by a Secret"
                )
            if name in of_secrets.difference(_OPEN_KEYS):
                raise ValueError(f"env: {name} would stand in the pipeline: put it into a Secret (secrets, env_from)")
        given = [*self.env, *(CA_VARIABLES if self.ca_bundle else ())]
        given += [key for one in self.env_from for key in one.keys]
        for kind, required in REQUIRED_KEYS.items():
            if getattr(self.secrets, kind) is not None:
                given += [*required, *OPTIONAL_KEYS[kind]]
        volumes = self.volumes
        given += ["HF_HOME", "XDG_CACHE_HOME"] if volumes.model_cache or volumes.work or volumes.scratch else []
        given += ["TMPDIR"] if volumes.scratch else []
        if twice := _twice(given):
            raise ValueError(
                f"{twice} is set twice: by env, env_from or ca_bundle, and by another of them, secrets or volumes"
            )
        return self

    @model_validator(mode="after")
    def _mounts_are_apart(self) -> Self:
        volumes = self.volumes
        named = [(one.claim, one.path) for one in (volumes.model_cache, volumes.work) if one is not None]
        named += [(one.name, one.path) for one in self.files]
        named += [(SCRATCH, volumes.scratch.path)] if volumes.scratch else []
        if twice := _twice([*(name for name, _ in named), *_OTHERS_VOLUMES, SHM]):
            raise ValueError(
                f"two volumes of a pod would have the name {twice}: claims, and files' sources, need others"
            )
        if twice := _twice([*(path.rstrip("/") for _, path in named), *_OTHERS_PATHS, "/dev/shm"]):
            raise ValueError(f"{twice} is mounted twice: give volumes and files paths that neither others nor KFP have")
        if self.ca_bundle and not any(self.ca_bundle.startswith(f"{one.path.rstrip('/')}/") for one in self.files):
            raise ValueError(f"ca_bundle={self.ca_bundle}: lies below the path of none of `files`")
        return self


def _twice(values: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for one in values:
        if one in seen:
            return one
        seen.add(one)
    return None
