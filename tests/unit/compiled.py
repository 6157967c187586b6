"""A pipeline as a cluster reads it, and a platform.yaml that says something of everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec import pipeline_spec_pb2

from pipelines.build import PipelineName, build
from pipelines.graph import compile_to
from pipelines.platform import Platform
from rest_core.ablation.settings import AblationConfig, parse_schemes
from rest_core.config import Config, load

POLICIES = ("base", "warmup", "trained", "champion")
EVALUATIONS = tuple(f"evaluate-{name}-{policy}" for name in ("bfcl", "api-bank") for policy in POLICIES)
STAGES = ("prepare-data", "sft-warmup", "rest-rl", *EVALUATIONS, "compare-policies", "compare-and-register")
GPU_STAGES = ("sft-warmup", "rest-rl", *EVALUATIONS)
CACHED = {"prepare-data", "evaluate-bfcl-base", "evaluate-api-bank-base"}

PLATFORM = {
    "images": {
        "base": "registry.example/rest-base@sha256:" + "0" * 64,
        "evaluate": "registry.example/rest-evaluate@sha256:" + "2" * 64,
        "pull_policy": "Always",
        "pull_secrets": ["registry"],
    },
    "kfp_url": "https://kfp.example/pipeline",
    "labels": {"team": "tools"},
    "annotations": {"note": "of a run"},
    "security_context": {"run_as_user": 1000, "run_as_group": 2000},
    "secrets": {"s3": "s3-keys", "hugging_face": "hf", "mlflow": "tracking", "webhook": "hook"},
    "volumes": {
        "model_cache": {"claim": "cache", "path": "/cache/"},
        "work": {"claim": "work", "path": "/work", "sub_path": "rest"},
    },
    "storage": {"location": "s3://bucket/runs"},
    "stages": {
        "default": {
            "cpu": "2",
            "memory": "8Gi",
            "timeout_seconds": 3600,
            "retries": {"count": 1, "backoff_seconds": 30},
            "gpu": {"count": 1},
        },
        "preflight": {"retries": {"count": 0}},
        "rest_rl": {
            "cpu": "16",
            "memory": "64Gi",
            "gpu": {"resource": "amd.com/gpu", "count": 8},
            "shm_size": "16Gi",
            "node_selector": {"pool": "a100"},
            "tolerations": [
                {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "spot", "value": "yes", "effect": "NoExecute", "toleration_seconds": 60},
            ],
            "timeout_seconds": 86400,
            "retries": {"count": 5, "backoff_seconds": 60, "backoff_factor": 1},
        },
    },
}


class Compiled:
    """A compiled file, both specs parsed into their protobufs: unknown fields are refused."""

    def __init__(self, path: Path) -> None:
        pipeline, kubernetes = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        self.spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(kubernetes, pipeline_spec_pb2.PlatformSpec())
        executors = kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.pods = {
            label.removeprefix("exec-"): json_format.ParseDict(executor, KubernetesExecutorConfig())
            for label, executor in executors.items()
        }
        self.containers = {
            label.removeprefix("exec-"): json_format.ParseDict(
                executor["container"], pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec()
            )
            for label, executor in pipeline["deploymentSpec"]["executors"].items()
        }
        self.tasks = dict(self._tasks(self.spec.root))

    def _tasks(self, graph: Any) -> Iterator[tuple[str, Any]]:
        """The tasks that are pods, by name, wherever they stand."""
        for name, task in graph.dag.tasks.items():
            called = self.spec.components[task.component_ref.name]
            if called.HasField("dag"):
                yield from self._tasks(called)
            else:
                yield name, task

    @property
    def handled(self) -> Any:
        """The tasks that the exit handler surrounds, by name."""
        (handler,) = [task for name, task in self.spec.root.dag.tasks.items() if name != "report-status"]
        return self.spec.components[handler.component_ref.name].dag.tasks

    def surroundings(self) -> dict[str, Any]:
        """What preflight is told of the platform, as a KFP parameter."""
        told = self.tasks["preflight"].inputs.parameters["surroundings"].runtime_value.constant.struct_value
        return dict(json_format.MessageToDict(told))

    def environment(self, task: str) -> dict[str, str]:
        return {variable.name: variable.value for variable in self.containers[task].env}

    def secrets(self, task: str) -> dict[str, tuple[str, bool]]:
        """The Secret that each environment variable comes from, and whether the pod starts without it."""
        return {
            entry.env_var: (secret.secret_name_parameter.runtime_value.constant.string_value, secret.optional)
            for secret in self.pods[task].secret_as_env
            for entry in secret.key_to_env
        }

    def mounts(self, task: str) -> dict[str, tuple[str, str]]:
        """Where each claim is mounted, and which folder of it."""
        return {
            mount.pvc_name_parameter.runtime_value.constant.string_value: (mount.mount_path, mount.sub_path)
            for mount in self.pods[task].pvc_mount
        }

    def gpus(self, task: str) -> tuple[str, str]:
        """Resource and number of a task's GPUs; empty where it has none."""
        accelerator = self.containers[task].resources.accelerator
        return accelerator.resource_type, accelerator.resource_count


def compile_for(
    folder: Path, platform: dict[str, Any], pipeline: PipelineName = "rest", config: Config | None = None
) -> Compiled:
    """A pipeline for a platform.yaml with these values; the ablation has two schemes and two seeds."""
    settings: dict[str, Any] = {}
    if pipeline == "ablation":
        settings = {"schemes": parse_schemes(["uniform", "paper"]), "seeds": [0, 1]}
        settings |= {"ablation": AblationConfig(metric="reward/after"), "parallelism": 2}
    path = folder / f"{pipeline}.yaml"
    compile_to(path, build(config or load("tiny"), Platform.model_validate(platform), pipeline, **settings))
    return Compiled(path)
