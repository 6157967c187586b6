"""Where and how a pipeline's pods run: one typed file, `platform.yaml`, beside the profile that says what they do.

    rest compile --profile qwen3-1.7b --platform platform.yaml …

What a stage does not say has the value of `stages.default`. `deploy/platform.yaml` is a complete example.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, create_model, model_validator

from pipelines.kubernetes_values import (
    Claim,
    Cpu,
    Image,
    LabelKey,
    LabelValue,
    MountPath,
    Name,
    ResourceName,
    Size,
    SubPath,
)
from rest_core import storage
from rest_core.config import Section, validate
from rest_core.errors import UserError, one_line
from rest_core.operations.catalogue import CATALOGUE, ENTRIES
from rest_core.operations.preflight.surroundings import Toleration

_GPU_STAGES = [stage.identifier for stage in ENTRIES if stage.gpu]  # `stages.default.gpu` is theirs alone

# Sections of a stage that are inherited key by key.
_IN_PARTS = ("retries", "gpu")

_DAY = 24 * 3600
_NO_TIMEOUT_SECONDS = 30 * _DAY  # what a try without a time-out is taken to last
_SCHEDULING_SECONDS = _DAY  # what a try may wait for a node
_MOST_PAUSE_SECONDS = 30 * _DAY


class Images(Section):
    """References of the images, one a target of the Dockerfile; `make push` prints them by digest."""

    base: Image | None = Field(
        None, description="without training and evaluation libraries; null = the image built here"
    )
    train: Image | None = None
    evaluate: Image | None = None
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[Name, ...] = ()


class Gpu(Section):
    resource: ResourceName = Field("nvidia.com/gpu", description="Kubernetes resource name")
    count: int = Field(1, ge=0, description="a pod; 0 = none, where stages.default has some")


class Retries(Section):
    """Tries after the first; a stage goes on from its own leftovers."""

    count: int = Field(0, ge=0, le=100)
    backoff_seconds: int = Field(60, ge=0, description="pause before the second try")
    backoff_factor: int = Field(2, ge=1, le=10, description="how much longer each pause is; Argo takes whole numbers")
    window_seconds: int | None = Field(
        None,
        ge=1,
        description="from the start of the first try, after which no try is begun and one that runs is ended; null = "
        "as long as all tries may take",
    )

    @property
    def pauses(self) -> int:
        """Seconds of all pauses together."""
        return sum(self.backoff_seconds * self.backoff_factor**n for n in range(self.count))

    def window(self, timeout_seconds: int | None) -> int:
        """Seconds from the first try's start in which all tries fit, each waiting for a node and then running."""
        if self.window_seconds is not None:
            return self.window_seconds
        a_try = _SCHEDULING_SECONDS + (timeout_seconds or _NO_TIMEOUT_SECONDS)
        return (self.count + 1) * a_try + self.pauses

    @model_validator(mode="after")
    def _pauses_end(self) -> Retries:
        if self.pauses > _MOST_PAUSE_SECONDS:
            raise ValueError(
                f"the pauses between {self.count + 1} tries add up to {self.pauses / 86400:.0f} days; make "
                "backoff_factor or count smaller"
            )
        return self


class StagePlatform(Section):
    """What the pod of one stage asks for; null: the value of `stages.default`, and there the cluster's own."""

    cpu: Cpu | None = Field(None, description="request and limit")
    memory: Size | None = Field(None, description="request and limit")
    gpu: Gpu | None = None
    shm_size: Size | None = Field(None, description="/dev/shm, memory-backed; counts towards memory")
    node_selector: dict[LabelKey, LabelValue] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    timeout_seconds: int | None = Field(None, ge=1, description="active deadline of the pod")
    retries: Retries | None = None
    nodes: int | None = Field(None, ge=1, description="rest-rl only: more than one makes it a TrainJob")


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
    webhook: Name | None = None


class SecurityContext(Section):
    run_as_non_root: bool = True
    run_as_user: int | None = Field(None, ge=0, description="null = the image's, or what the cluster assigns")
    run_as_group: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _root_is_root(self) -> SecurityContext:
        if self.run_as_non_root and self.run_as_user == 0:
            raise ValueError("run_as_user 0 is root, which run_as_non_root forbids: no pod would start; change one")
        return self


class Storage(Section):
    """Large artifacts by URI: models and checkpoints go there, pods hand on a small manifest."""

    location: str | None = Field(
        None, description="s3://bucket/prefix, or a folder of the work volume; null: KFP copies them"
    )


class TrainJobs(Section):
    """A training on several nodes, by Kubeflow Trainer."""

    runtime: Name = Field("rest-torch", description="TrainingRuntime (`deploy/training-runtime.yaml`)")
    deadline_seconds: int = Field(7 * 24 * 3600, ge=1)


class Serving(Section):
    """The pods of a trained model behind KServe (`rest serve --kserve`)."""

    apply: Literal["champion", "challenger"] | None = Field(
        None, description="a pipeline's last stage serves the version that has this alias; null = it has no such stage"
    )
    image: Image = Field("vllm/vllm-openai:v0.32.0", description="with vLLM; the parser of responses needs 0.32")
    service_account: Name | None = Field(
        None, description="whose Secret KServe reads S3 with (serving.kserve.io annotations); null = the default one"
    )
    api_key_secret: Name | None = Field(
        None, description="Secret with VLLM_API_KEY, which requests must then carry; null = the server asks for none"
    )
    cpu: Cpu | None = Field(None, description="request and limit")
    memory: Size | None = Field(None, description="request and limit")
    gpu: Gpu | None = Gpu()
    shm_size: Size | None = Field(None, description="/dev/shm, memory-backed; vLLM on several GPUs needs it")
    node_selector: dict[LabelKey, LabelValue] = Field({})
    tolerations: tuple[Toleration, ...] = ()
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    annotations: dict[LabelKey, str] = Field({}, description="of the service: serving.kserve.io/deploymentMode …")
    vllm_options: tuple[str, ...] = Field((), description="further arguments of vLLM: [--max-model-len, '4096']")

    @model_validator(mode="after")
    def _between_its_bounds(self) -> Serving:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        return self


class _Stages(Section):
    default: StagePlatform = StagePlatform()

    @model_validator(mode="after")
    def _only_where_it_is_used(self) -> _Stages:
        for stage in ENTRIES:
            own: StagePlatform = getattr(self, stage.identifier)
            if own.gpu is not None and not stage.gpu:
                raise ValueError(
                    f"{stage.identifier} uses no GPU: leave its gpu out (GPU stages: {', '.join(_GPU_STAGES)})"
                )
            if own.nodes is not None and stage.name != "rest-rl":
                raise ValueError(f"{stage.identifier} runs in one pod: leave its nodes out")
        if self.default.nodes is not None:
            raise ValueError("default: nodes is a setting of rest_rl alone")
        return self


_FIELDS: dict[str, Any] = {stage.identifier: (StagePlatform, StagePlatform()) for stage in ENTRIES}
Stages = create_model("Stages", __base__=_Stages, **_FIELDS)
"""One `StagePlatform` an entry of the catalogue, and `default`; evaluations of all policies share theirs."""


class Platform(Section):
    """The whole of `platform.yaml`."""

    namespace: Name = "kubeflow"
    kfp_url: str | None = Field(
        None, pattern=r"^https?://", description="address of KFP's pages as people open it, for links in reports"
    )
    images: Images = Images()
    service_account: Name | None = Field(None, description="of the run's pods; null = KFP's pipeline-runner")
    labels: dict[LabelKey, LabelValue] = Field({}, description="on every pod")
    annotations: dict[LabelKey, str] = Field({}, description="on every pod")
    security_context: SecurityContext = SecurityContext()
    secrets: Secrets = Secrets()
    volumes: Volumes = Volumes()
    storage: Storage = Storage()
    train_jobs: TrainJobs = TrainJobs()
    serving: Serving = Serving()
    stages: Stages = Stages()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _outputs_go_where_they_last(self) -> Platform:
        if (location := self.storage.location) is not None:
            try:
                self.require_lasting(location)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _stages_fit_with_their_defaults(self) -> Platform:
        for stage in ENTRIES:
            try:
                self.stage(stage.name)
            except UserError as error:
                raise ValueError(str(error)) from None
        return self

    def require_lasting(self, location: str) -> None:
        """Refuse a storage location that would be on each pod's own disk.

        Raises:
            UserError: it is neither s3:// nor a folder of the work volume.
        """
        if not storage.is_s3(location) and not self.volumes.keep(location):
            there = "none is mounted" if self.volumes.work is None else f"mounted at {self.volumes.work.path}"
            raise UserError(
                f"storage.location={location}: neither s3://bucket/prefix nor a folder of the work volume ({there}), "
                "so that each pod would write to its own disk"
            )

    def stage(self, name: str) -> StagePlatform:
        """What the stage with the task name `name` ("rest-rl") asks for, defaults filled in.

        Of `retries` and `gpu` a stage may say a part; a GPU count of 0 is no GPU.
        """
        field = CATALOGUE[name].entry
        own = _said(getattr(self.stages, field))
        default = _said(self.stages.default)  # type: ignore[attr-defined]
        if not CATALOGUE[name].gpu:
            default.pop("gpu", None)
        merged = {**default, **own}
        for part in _IN_PARTS:
            if part in default and part in own:
                merged[part] = {**default[part], **own[part]}
        if merged.get("gpu", {}).get("count") == 0:
            del merged["gpu"]
        return validate(StagePlatform, merged, where=f"stages.{field}, with what stages.default says")


def _said(stage: StagePlatform) -> dict[str, Any]:
    return stage.model_dump(exclude_unset=True, exclude_none=True)


class _Loader(yaml.SafeLoader):
    """YAML in which no key stands twice: of two the first would be lost without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep=deep)


def load_platform(path: Path) -> Platform:
    """Read a `platform.yaml`.

    Raises:
        UserError: it cannot be read, is not YAML, or does not fit; the message names the field.
    """
    try:
        values: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not YAML ({one_line(error)})") from None
    return validate(Platform, {} if values is None else values, where=str(path))
