"""The pipeline: prepare-data → sft-warmup → rest-rl → evaluate-bfcl ∥ evaluate-api-bank → register.

A stage that the configuration switches off still has its place: it passes its input on (see `rest_core.stages`), so
that the graph is the same for every run.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kfp import compiler, dsl, kubernetes
from kfp.dsl.graph_component import GraphComponent

from components.evaluate_api_bank.component import evaluate_api_bank
from components.evaluate_bfcl.component import evaluate_bfcl
from components.images import BASE_IMAGE
from components.prepare_data.component import prepare_data
from components.register.component import register
from components.rest_rl.component import rest_rl
from components.runtime import RUN_ID_VARIABLE
from components.sft_warmup.component import sft_warmup
from rest_core.config import Config
from rest_core.errors import UserError

# The stages in their order, by the names of their tasks.
STAGES = ("prepare-data", "sft-warmup", "rest-rl", "evaluate-bfcl", "evaluate-api-bank", "register")
GPU_STAGES = ("sft-warmup", "rest-rl", "evaluate-bfcl", "evaluate-api-bank")
PARAMETERS = ("model", "data", "sft", "rl", "bfcl", "api_bank", "registry", "tracking")
RETRIES = 5  # of the training, after pre-emption or a lost node
CACHED_STAGES = ("prepare-data", "evaluate-bfcl", "evaluate-api-bank")


@dataclass(frozen=True)
class Resources:
    """What a GPU stage asks of the cluster; None leaves the cluster's default."""

    gpus: int = 0
    gpu_type: str = "nvidia.com/gpu"
    cpu: str | None = None  # Kubernetes notation: "8", "500m"
    memory: str | None = None  # Kubernetes notation: "64Gi"

    def __post_init__(self) -> None:
        if self.cpu is not None and not re.fullmatch(r"\d*\.?\d+m?", self.cpu):
            raise UserError(f"--cpu {self.cpu!r}: write it as 8, 0.5 or 500m")
        if self.memory is not None and not re.fullmatch(r"\d+([KMGTPE]i?)?", self.memory):
            raise UserError(f"--memory {self.memory!r}: write it as 64Gi or 64G")


def build(
    config: Config,
    *,
    image: str = BASE_IMAGE,
    images: Mapping[str, str] | None = None,
    resources: Resources | None = None,
) -> GraphComponent:
    """The pipeline with `config` as the default of its parameters, one parameter a section.

    Args:
        config: defaults of the parameters; a submitted run may replace any section.
        image: container image of all components.
        images: container images of single components, by the names of their tasks.
        resources: what each GPU stage asks for, the training tried again when it is stopped; None asks for nothing
            and tries nothing again (local runs).
    """

    default = {name: getattr(config, name).to_parameter() for name in PARAMETERS}

    @dsl.pipeline(name="rest-pipeline", description="Prepare data, warm up, train with ResT, evaluate, register")
    def rest_pipeline(
        model: dict = default["model"],
        data: dict = default["data"],
        sft: dict = default["sft"],
        rl: dict = default["rl"],
        bfcl: dict = default["bfcl"],
        api_bank: dict = default["api_bank"],
        registry: dict = default["registry"],
        tracking: dict = default["tracking"],
        pipeline_run: str = "",
    ) -> None:
        # An empty pipeline_run means the KFP run's id, which each pod reads from its label: as an input (KFP resolves
        # PIPELINE_JOB_ID_PLACEHOLDER there, and only as a task's constant) it would be part of the cache key.
        common = {"tracking": tracking, "pipeline_run": pipeline_run}
        prepared = prepare_data(model=model, data=data, api_bank=api_bank, **common)
        dataset = prepared.outputs["dataset"]
        warmed = sft_warmup(model=model, sft=sft, dataset=dataset, **common)
        trained = rest_rl(model=model, rl=rl, dataset=dataset, policy=warmed.outputs["policy"], **common)
        policy = trained.outputs["trained"]
        on_bfcl = evaluate_bfcl(model=model, bfcl=bfcl, policy=policy, **common)
        on_api_bank = evaluate_api_bank(model=model, api_bank=api_bank, policy=policy, **common)
        registered = register(
            registry=registry,
            dataset=dataset,
            policy=policy,
            bfcl=on_bfcl.outputs["report"],
            api_bank=on_api_bank.outputs["report"],
            **common,
        )
        for task in (prepared, warmed, trained, on_bfcl, on_api_bank, registered):
            task.set_container_image((images or {}).get(task.name, image))
            task.set_caching_options(task.name in CACHED_STAGES)
            kubernetes.use_field_path_as_env(task, RUN_ID_VARIABLE, "metadata.labels['pipeline/runid']")
            if resources is not None and task.name in GPU_STAGES:
                _ask_for(task, resources)
        if resources is not None:
            # A training that was pre-empted goes on from its mirrored checkpoint. KFP cannot look at the exit code: a
            # wrong configuration, which fails at once, is tried again too.
            trained.set_retry(RETRIES, backoff_duration="60s", backoff_factor=1.0)

    return rest_pipeline


def compile_to(path: Path, pipeline: GraphComponent) -> None:
    """Write the pipeline's KFP YAML (pipeline spec and platform spec) to `path`."""
    if path.suffix != ".yaml":
        raise UserError(f"{path}: KFP reads pipelines from .yaml files; name it {path.with_suffix('.yaml').name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, package_path=str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _ask_for(task: dsl.PipelineTask, resources: Resources) -> None:
    if resources.gpus:
        task.set_accelerator_type(resources.gpu_type)
        task.set_accelerator_limit(resources.gpus)
    if resources.cpu is not None:
        task.set_cpu_request(resources.cpu)
        task.set_cpu_limit(resources.cpu)
    if resources.memory is not None:
        task.set_memory_request(resources.memory)
        task.set_memory_limit(resources.memory)
