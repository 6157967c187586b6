"""What kfp's local runner does otherwise than a cluster, found in a compiled pipeline before it is run.

kfp.local (2.17) takes any pipeline that the compiler takes. Some constructs it then gets wrong without a word, some it
cannot run, some it ignores. `tests/unit/test_kfp_local.py` reproduces each against the real runner, so that
the test says when kfp has mended one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from google.protobuf import json_format
from kfp.dsl import component_factory
from kfp.dsl.graph_component import GraphComponent
from kfp.pipeline_spec import pipeline_spec_pb2

from rest_core.errors import UserError

Effect = Literal["wrong", "fails", "ignored"]

# Messages of kfp.pipeline_spec.pipeline_spec_pb2: protobuf's generated classes have no types.
PipelineSpec: TypeAlias = Any
_Task: TypeAlias = Any
_Component: TypeAlias = Any

_ExecutorSpec = pipeline_spec_pb2.PipelineDeploymentConfig.ExecutorSpec

_PLACEHOLDERS = {
    "{{$.pipeline_job_resource_name}}": "PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER",
    "{{$.pipeline_job_create_time_utc}}": "PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER",
    "{{$.pipeline_job_schedule_time_utc}}": "PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER",
}
_WORKSPACE = "{{$.workspace_path}}"
_METRICS = ("system.Metrics", "system.ClassificationMetrics", "system.SlicedClassificationMetrics")


@dataclass(frozen=True)
class Finding:
    """A construct on which local and cluster runs differ."""

    task: str  # path of the task: "trials / rest-rl"; empty = the pipeline itself
    construct: str
    effect: Effect
    locally: str  # what the local runner does

    def __str__(self) -> str:
        return f"{self.task or 'pipeline'}: {self.construct}: {self.locally} ({self.effect})"


def check(spec: PipelineSpec, platform: Mapping[str, Any] | None = None) -> list[Finding]:
    """The constructs of a compiled pipeline that kfp.local runs otherwise than a cluster.

    Args:
        spec: `pipeline.pipeline_spec`, or a YAML file's first document as the message.
        platform: the platform spec (the file's second document) as plain types; None = not looked at.

    Returns:
        Findings, in the order of the graph. `wrong`: another result, without a word. `fails`: an error. `ignored`: a
        setting without effect, which is what a local run is meant to do with a cluster's settings.
    """
    return [*_Check(spec, platform or {}).findings()]


def require_runnable(pipeline: GraphComponent) -> None:
    """Refuse to run a pipeline with kfp.local that would end in an error or, worse, in another result.

    Raises:
        UserError: names the constructs.
    """
    found = [str(finding) for finding in check(pipeline.pipeline_spec) if finding.effect != "ignored"]
    if found:
        raise UserError(f"kfp's local runner cannot run this as a cluster does: {'; '.join(found)}")


class _Check:
    def __init__(self, spec: PipelineSpec, platform: Mapping[str, Any]) -> None:
        self._spec = spec
        self._executors = {
            label: json_format.ParseDict(json_format.MessageToDict(executor), _ExecutorSpec())
            for label, executor in spec.deployment_spec["executors"].items()
        }
        kubernetes = platform.get("platforms", {}).get("kubernetes", {})
        self._kubernetes = kubernetes.get("deploymentSpec", {}).get("executors", {})
        self._pipeline_config = kubernetes.get("pipelineConfig", {})

    def findings(self) -> Iterator[Finding]:
        root = self._spec.root
        for name, parameter in root.input_definitions.parameters.items():
            yield from _python3("", f"default of the parameter {name}", parameter.default_value)
        if self._pipeline_config:
            yield Finding("", f"settings of the pipeline {sorted(self._pipeline_config)}", "ignored", "no effect")
        yield from self._dag(root, ())

    def _dag(self, component: _Component, path: tuple[str, ...]) -> Iterator[Finding]:
        yield from _one_of(component, " / ".join(path))
        for name, task in component.dag.tasks.items():
            here = " / ".join([*path, name])
            called = self._spec.components[task.component_ref.name]
            yield from self._condition(task, component, here)
            yield from _loop(task, here)
            yield from _inputs(task, here)
            if called.WhichOneof("implementation") == "dag":
                yield from _artifacts_alone(task, called, here)
                yield from self._dag(called, (*path, name))
            else:
                yield from self._container(task, called, here)

    def _condition(self, task: _Task, outer: _Component, here: str) -> Iterator[Finding]:
        for name in re.findall(r"inputs\.parameter_values\['([^']+)'\]", task.trigger_policy.condition):
            if self._type_of(task.inputs.parameters[name], outer) == pipeline_spec_pb2.ParameterType.STRING:
                what = "false where the text holds a quote, whatever it is compared with"
                yield Finding(here, f"a condition on the text {name}", "wrong", what)

    def _type_of(self, given: Any, outer: _Component) -> int:
        """The type of what a task is given, as its producer or the graph around it declares it."""
        if given.HasField("task_output_parameter"):
            producer = given.task_output_parameter
            component = self._spec.components[outer.dag.tasks[producer.producer_task].component_ref.name]
            return int(component.output_definitions.parameters[producer.output_parameter_key].parameter_type)
        return int(outer.input_definitions.parameters[given.component_input_parameter].parameter_type)

    def _container(self, task: _Task, component: _Component, here: str) -> Iterator[Finding]:
        executor = self._executors[component.executor_label]
        if executor.WhichOneof("spec") != "container":
            return
        container = executor.container
        words = [*container.command, *container.args]
        if not any(component_factory.EXECUTOR_MODULE in word for word in words):
            yield Finding(here, "a container component", "fails", "SubprocessRunner runs Python components only")
        for text in [*words, *(variable.value for variable in container.env)]:
            yield from _placeholders(here, text)
        if container.HasField("resources"):
            yield Finding(here, "resources", "ignored", "no limit is set, no accelerator is given")
        settings = sorted(self._kubernetes.get(component.executor_label, {}))
        if settings:
            yield Finding(here, f"kfp-kubernetes settings {settings}", "ignored", "no effect")
        if task.caching_options.enable_cache:
            yield from _uncached_metrics(component, "\n".join(words), here)


def _one_of(component: _Component, here: str) -> Iterator[Finding]:
    for name, selector in component.dag.outputs.artifacts.items():
        if len(selector.artifact_selectors) > 1:
            yield Finding(here, f"dsl.OneOf of artifacts as the output {name}", "fails", "raises ValueError")


def _loop(task: _Task, here: str) -> Iterator[Finding]:
    iterator = task.WhichOneof("iterator")
    if iterator != "parameter_iterator":
        return
    items = task.parameter_iterator.items.input_parameter
    item = task.parameter_iterator.item_input
    for name, given in task.inputs.parameters.items():
        if given.HasField("task_output_parameter"):
            producer = given.task_output_parameter
            if name != items:
                yield Finding(
                    here,
                    f"the output {producer.output_parameter_key} of {producer.producer_task} inside a loop",
                    "wrong",
                    "replaced by the loop's item",
                )
            elif producer.output_parameter_key != "Output":
                yield Finding(
                    here,
                    f"a loop over the named output {producer.output_parameter_key} of {producer.producer_task}",
                    "fails",
                    "raises ValueError: only a component's single output is found",
                )
        elif given.component_input_parameter.endswith("-loop-item") and name != item:
            yield Finding(
                here,
                f"the outer loop's item {given.component_input_parameter} inside an inner loop",
                "wrong",
                "replaced by the inner loop's item",
            )


def _inputs(task: _Task, here: str) -> Iterator[Finding]:
    for name, given in task.inputs.parameters.items():
        if given.HasField("runtime_value"):
            constant = given.runtime_value.constant
            yield from _python3(here, f"the input {name}", constant)
            yield from _placeholders(here, constant.string_value)


def _artifacts_alone(task: _Task, called: _Component, here: str) -> Iterator[Finding]:
    if called.input_definitions.artifacts and not task.inputs.parameters and not task.WhichOneof("iterator"):
        yield Finding(
            here,
            f"a nested pipeline that takes artifacts {sorted(called.input_definitions.artifacts)} and no parameter",
            "fails",
            "its inputs are not found, or an outer input of the same name is taken for them",
        )


def _placeholders(here: str, text: str) -> Iterator[Finding]:
    for placeholder, name in _PLACEHOLDERS.items():
        if placeholder in text:
            yield Finding(here, f"dsl.{name}", "fails", "raises IndexError")
    if _WORKSPACE in text:
        yield Finding(here, "the workspace", "wrong", "a workspace_root given to local.init is deleted after the run")


def _python3(here: str, what: str, value: Any) -> Iterator[Finding]:
    if "python3" in json_format.MessageToJson(value):
        yield Finding(
            here, f"'python3' in {what}", "wrong", "SubprocessRunner puts the interpreter's path in its place"
        )


def _uncached_metrics(component: _Component, source: str, here: str) -> Iterator[Finding]:
    """KFP's executor writes no file for metrics; the local cache takes an artifact without a file as lost."""
    for name, artifact in component.output_definitions.artifacts.items():
        written = re.search(rf"\b{name}\.path\b|\bmetrics={name}\b", source)  # by itself, or by components.runtime
        if artifact.artifact_type.schema_title in _METRICS and not written:
            yield Finding(here, f"the metrics {name}, of which no file is written", "ignored", "is never cached")
