"""Where and how a pipeline's pods run: one typed file, `platform.yaml`, beside the profile that says what they do.

    rest compile --profile qwen3-1.7b --platform platform.yaml …

What a stage does not say has the value of `stages.default`. `deploy/platform.yaml` is a complete example.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model, model_validator

from pipelines.kubernetes_values import (
    Annotations,
    Cpu,
    Image,
    LabelKey,
    LabelValue,
    Memory,
    Name,
    Namespace,
    OwnKey,
    Seconds,
    Size,
)
from pipelines.pod_surroundings import PodSurroundings
from pipelines.stage_pods import Gpu, StagePlatform, Toleration, require_room_for_shm, said
from rest_core import storage
from rest_core.config import Section, validate
from rest_core.credentials import has_credentials
from rest_core.errors import UserError
from rest_core.operations.catalogue import CATALOGUE, ENTRIES
from rest_core.yaml_text import read_yaml

_GPU_STAGES = [stage.identifier for stage in ENTRIES if stage.gpu]  # `stages.default.gpu` is theirs alone

# Sections of a stage that are inherited key by key.
_IN_PARTS = ("retries", "gpu")


class Images(Section):
    """References of the images, one a target of the Dockerfile; `make push` prints them by digest."""

    base: Image | None = Field(
        None, description="without training and evaluation libraries; null = the image built here"
    )
    train: Image | None = None
    evaluate: Image | None = None
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[Name, ...] = ()


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
    memory: Memory | None = Field(None, description="request and limit")
    gpu: Gpu | None = Gpu()
    shm_size: Size | None = Field(None, description="/dev/shm, memory-backed; vLLM on several GPUs needs it")
    node_selector: dict[LabelKey, LabelValue] = Field({})
    tolerations: tuple[Toleration, ...] = ()
    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(1, ge=1)
    annotations: Annotations = Field({}, description="of the service: serving.kserve.io/deploymentMode …")
    vllm_options: tuple[str, ...] = Field((), description="further arguments of vLLM: [--max-model-len, '4096']")

    @model_validator(mode="after")
    def _between_its_bounds(self) -> Serving:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas})")
        require_room_for_shm(self.shm_size, self.memory)
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


class Workflow(Section):
    """A run as a whole, as Argo has it."""

    active_deadline_seconds: Seconds | None = Field(None, description="after which Argo ends all that runs")
    ttl_seconds_after_finished: Seconds | None = Field(
        None, description="after which Argo's workflow and its pods are deleted; null = as KFP is installed"
    )


class MlflowPlugin(Section):
    """What KFP's own MLflow plugin is told (`plugins_input.mlflow`); stages join the runs that it makes."""

    disabled: bool = False
    experiment_name: str | None = Field(None, min_length=1, description="null = the profile's tracking.experiment")


class Platform(PodSurroundings):
    """The whole of `platform.yaml`."""

    namespace: Namespace = "kubeflow"
    kfp_url: str | None = Field(
        None,
        pattern=r"^https?://",
        description="address of KFP's pages as people open it, for links in reports",
    )
    cache: bool = Field(True, description="whether KFP may reuse what earlier runs made of the same inputs")
    images: Images = Images()
    service_account: Name | None = Field(None, description="of the run's pods; null = KFP's pipeline-runner")
    labels: dict[OwnKey, LabelValue] = Field({}, description="on every pod")
    annotations: Annotations = Field({}, description="on every pod")
    workflow: Workflow = Workflow()
    mlflow_plugin: MlflowPlugin | None = Field(None, description="null = KFP is told nothing of it")
    storage: Storage = Storage()
    train_jobs: TrainJobs = TrainJobs()
    serving: Serving = Serving()
    stages: Stages = Stages()  # type: ignore[valid-type]

    @model_validator(mode="after")
    def _links_are_for_everybody(self) -> Platform:
        if self.kfp_url is not None and has_credentials(self.kfp_url):
            raise ValueError("kfp_url holds a password, and stands in reports: leave it out")
        return self

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
        own = said(getattr(self.stages, field))
        default = said(self.stages.default)  # type: ignore[attr-defined]
        if not CATALOGUE[name].gpu:
            default.pop("gpu", None)
        merged = {**default, **own}
        for part in _IN_PARTS:
            if part in default and part in own:
                merged[part] = {**default[part], **own[part]}
        if merged.get("gpu", {}).get("count") == 0:
            del merged["gpu"]
        return validate(StagePlatform, merged, where=f"stages.{field}, with what stages.default says")


def load_platform(path: Path) -> Platform:
    """Read a `platform.yaml`.

    Raises:
        UserError: it cannot be read, is not YAML, or does not fit; the message names the field.
    """
    values = read_yaml(path)
    return validate(Platform, {} if values is None else values, where=str(path))
