"""Where and how a pipeline's pods run: one typed file, `platform.yaml`, beside the profile that says what they do.

    rest compile --profile qwen3-1.7b --platform platform.yaml …

What a stage does not say has the value of `stages.default`. `deploy/platform.yaml` is a complete example.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, model_validator

from rest_core.config import Section, validate
from rest_core.errors import UserError
from rest_core.preflight.surroundings import Toleration

# Targets of the Dockerfile, and which of them each stage runs in.
IMAGE_OF = {
    "preflight": "train",
    "prepare-data": "evaluate",
    "sft-warmup": "train",
    "rest-rl": "train",
    "evaluate-bfcl": "evaluate",
    "evaluate-api-bank": "evaluate",
    "compare-and-register": "base",
    "aggregate": "base",
    "report-status": "base",
}


# The stages that may have GPUs; `stages.default.gpu` is theirs alone.
GPU_STAGES = ("sft-warmup", "rest-rl", "evaluate-bfcl", "evaluate-api-bank")


def _quantity(pattern: str, example: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{value!r} is no Kubernetes quantity: write it as {example}")
        return value

    return AfterValidator(check)


Cpu = Annotated[str, _quantity(r"\d*\.?\d+m?", "8, 0.5 or 500m")]
Size = Annotated[str, _quantity(r"\d+([KMGTPE]i?)?", "64Gi or 64G")]
# Names of Kubernetes objects (RFC 1123 subdomain).
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]


class Images(Section):
    """References of the images, one a target of the Dockerfile; `make push` prints them by digest."""

    base: str | None = Field(None, description="without training and evaluation libraries; null = the image built here")
    train: str | None = None
    evaluate: str | None = None
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[Name, ...] = ()


class Gpu(Section):
    resource: str = Field("nvidia.com/gpu", description="Kubernetes resource name")
    count: int = Field(1, ge=1, description="a pod")


class Retries(Section):
    """Tries after the first; a stage goes on from its own leftovers."""

    count: int = Field(0, ge=0)
    backoff_seconds: int = Field(60, ge=0)
    backoff_factor: float = Field(2.0, ge=1)
    backoff_max_seconds: int = Field(3600, ge=1)


class StagePlatform(Section):
    """What the pod of one stage asks for; null: the value of `stages.default`, and there the cluster's own."""

    cpu: Cpu | None = Field(None, description="request and limit")
    memory: Size | None = Field(None, description="request and limit")
    gpu: Gpu | None = None
    shm_size: Size | None = Field(None, description="/dev/shm, memory-backed; counts towards memory")
    node_selector: dict[str, str] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    timeout_seconds: int | None = Field(None, ge=1, description="active deadline of the pod")
    retries: Retries | None = None
    nodes: int | None = Field(None, ge=1, description="rest-rl only: more than one makes it a TrainJob")


class Volume(Section):
    """A PersistentVolumeClaim that is there already."""

    claim: Name
    path: str = Field(pattern="^/.+", description="where it is mounted")
    sub_path: str = ""


class Volumes(Section):
    model_cache: Volume | None = Field(None, description="downloaded checkpoints, kept between runs")
    work: Volume | None = Field(None, description="work space that all pods share")

    @model_validator(mode="after")
    def _two_claims(self) -> Volumes:
        if self.model_cache and self.work and self.model_cache.claim == self.work.claim:
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
    run_as_user: int | None = Field(None, ge=0, description="null = the image's, or what the cluster assigns")
    run_as_group: int | None = Field(None, ge=0)


class Storage(Section):
    """Large artifacts by URI: models and checkpoints go there, pods hand on a small manifest."""

    location: str | None = Field(
        None, description="s3://bucket/prefix, or a folder of the work volume; null: KFP copies them"
    )


class TrainJobs(Section):
    """A training on several nodes, by Kubeflow Trainer."""

    runtime: Name = Field("rest-torch", description="TrainingRuntime (`deploy/training-runtime.yaml`)")
    deadline_seconds: int = Field(7 * 24 * 3600, ge=1)


class Stages(Section):
    default: StagePlatform = StagePlatform()
    preflight: StagePlatform = StagePlatform()
    prepare_data: StagePlatform = StagePlatform()
    sft_warmup: StagePlatform = StagePlatform()
    rest_rl: StagePlatform = StagePlatform()
    evaluate_bfcl: StagePlatform = StagePlatform()
    evaluate_api_bank: StagePlatform = StagePlatform()
    compare_and_register: StagePlatform = StagePlatform()
    aggregate: StagePlatform = StagePlatform()
    report_status: StagePlatform = StagePlatform()

    @model_validator(mode="after")
    def _only_where_it_is_used(self) -> Stages:
        for name in IMAGE_OF:
            own: StagePlatform = getattr(self, _field(name))
            if own.gpu is not None and name not in GPU_STAGES:
                raise ValueError(f"{_field(name)} uses no GPU: leave its gpu out (GPU stages: {', '.join(GPU_STAGES)})")
            if own.nodes is not None and name != "rest-rl":
                raise ValueError(f"{_field(name)} runs in one pod: leave its nodes out")
        if self.default.nodes is not None:
            raise ValueError("default: nodes is a setting of rest_rl alone")
        return self


def _field(task: str) -> str:
    return task.replace("-", "_")


class Platform(Section):
    """The whole of `platform.yaml`."""

    namespace: Name = "kubeflow"
    kfp_url: str | None = Field(
        None, pattern=r"^https?://", description="address of KFP's pages as people open it, for links in reports"
    )
    images: Images = Images()
    service_account: Name | None = Field(None, description="of the run's pods; null = KFP's pipeline-runner")
    labels: dict[str, str] = Field({}, description="on every pod")
    annotations: dict[str, str] = Field({}, description="on every pod")
    security_context: SecurityContext = SecurityContext()
    secrets: Secrets = Secrets()
    volumes: Volumes = Volumes()
    storage: Storage = Storage()
    train_jobs: TrainJobs = TrainJobs()
    stages: Stages = Stages()

    def stage(self, name: str) -> StagePlatform:
        """What the stage with the task name `name` ("rest-rl") asks for, defaults filled in."""
        own = getattr(self.stages, _field(name)).model_dump(exclude_none=True)
        default = self.stages.default.model_dump(exclude_none=True, exclude=set() if name in GPU_STAGES else {"gpu"})
        return StagePlatform.model_validate({**default, **own})


def load_platform(path: Path) -> Platform:
    """Read a `platform.yaml`.

    Raises:
        UserError: it cannot be read, is not YAML, or does not fit; the message names the field.
    """
    try:
        values: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())})") from None
    return validate(Platform, {} if values is None else values, where=str(path))
