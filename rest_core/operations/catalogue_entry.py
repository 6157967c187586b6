"""What the catalogue of stages says of each: the types of its entries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rest_core.config import Config, PolicyName

SOURCES = ("model", "data", "api_bank")
"""Sections that name places outside of a run, from which it reads."""


def state_of(section: str) -> str:
    """The parameter that has the state of a section's places."""
    return f"{section}_state"


@dataclass(frozen=True)
class Figure:
    """A metric of a stage that the summary of a run shows."""

    label: str
    metric: str
    format: str = ".1%"
    main: bool = False
    """Whether MLflow has it on the pipeline's run as well, where pipelines are compared."""

    def shown(self, metrics: Mapping[str, float]) -> str:
        """For people: label and value, with the 95 % interval where it was measured."""
        return f"{self.label} {self.value(metrics)}"

    def value(self, metrics: Mapping[str, float]) -> str:
        """The same without the label."""
        text = format(metrics[self.metric], self.format)
        low, high = (bound(self.metric, end) for end in ("low", "high"))
        if low not in metrics or high not in metrics:
            return text
        return f"{text} ({format(metrics[low], self.format)}–{format(metrics[high], self.format)})"


def bound(metric: str, end: Literal["low", "high"]) -> str:
    """The metric that has a bound of another one's 95 % interval: "bfcl/low/call_accuracy"."""
    benchmark, _, name = metric.partition("/")
    return f"{benchmark}/{end}/{name}"


@dataclass(frozen=True)
class Command:
    """The command of a stage, `rest NAME`."""

    name: str
    details: str = ""
    """A line of its help, after the stage's summary."""
    examples: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    """Besides those that every stage has: "data", "api_bank", "trial"."""


@dataclass(frozen=True)
class Parameter:
    """A parameter of a component that is no section of the configuration."""

    model: str
    """"module:class" of the typed model that it is read as."""
    annotation: str = "dict"
    optional: bool = False
    """Empty by default; the stage is then called without it."""


Part = Literal["shared", "trial", "single", "ablation", "serving", "cluster"]


@dataclass(frozen=True)
class Evaluated:
    """A policy that the pipelines evaluate on every benchmark."""

    name: PolicyName
    title: str
    """In comparisons."""
    part: Part
    """Where its evaluations run."""
    stage: str | None
    """The stage that makes it; None = it exists before the run."""
    switch: str | None
    """The section whose `enabled` is false where it is the same as the one before it, or does not exist."""
    sections: tuple[str, ...] = ()
    """Sections that its evaluations read in addition."""


EVALUATED = (
    Evaluated("base", "base", "shared", None, None),
    Evaluated("warmup", "warm-up", "shared", "sft-warmup", "sft"),
    Evaluated("trained", "ResT", "trial", "rest-rl", "rl"),
    Evaluated("champion", "champion", "single", None, "registry", sections=("registry",)),
)


@dataclass(frozen=True)
class Stage:
    """A stage: a function of `rest_core.stages`, and where it stands in the pipelines."""

    name: str
    """Of its task, its pod and its MLflow run: "rest-rl"."""
    function: str
    """"module:function". It takes sections, parameters and inputs, `pipeline_run` and `out` as keywords."""
    summary: str
    """What it does, in one line."""
    part: Part
    """Where it runs: once in every pipeline, once a training, at the end of a pipeline with one training, at the end
    of an ablation, after that on a cluster that serves the model, or around all of it on a cluster."""
    sections: tuple[str, ...]
    """Sections of `rest_core.config.Config` that it reads; a change of any other leaves its cached output valid."""
    output: str
    """Name of the artifact that it makes, a folder."""
    contents: str
    """What the output holds."""
    kind: Literal["Dataset", "Model", "Artifact"] = "Artifact"
    inputs: tuple[tuple[str, str], ...] = ()
    """Outputs of other stages that it reads: (parameter, stage)."""
    reads_evaluations: tuple[PolicyName, ...] = ()
    """The policies whose report on every benchmark it reads besides, as `evaluations`."""
    after: tuple[str, ...] = ()
    """Stages that it waits for without reading their output."""
    parameters: tuple[tuple[str, Parameter], ...] = ()
    page: tuple[str, Literal["HTML", "Markdown"]] | None = None
    """A file of the output that KFP's pages show."""
    image: Literal["base", "train", "evaluate"] = "base"
    gpu: bool = False
    """Whether its pods may have GPUs."""
    cached: bool = False
    """Whether KFP may reuse the output of an earlier task that had the same inputs."""
    looks_at: tuple[str, ...] = ()
    """Sections whose places it looks at: the state of each is an output parameter (`operations.preflight.states`)."""
    switch: str | None = None
    """The section whose `enabled` switches it off; it then passes its input on, or says why it did nothing."""
    benchmark: str | None = None
    """Of an evaluation: the benchmark's name, which its metrics begin with. Pipelines have it once per policy."""
    evaluated: Evaluated | None = None
    """Of an evaluation in a pipeline: the policy."""
    command: Command | None = None
    figures: tuple[Figure, ...] = ()

    @property
    def identifier(self) -> str:
        """Its name as Python and platform.yaml spell it: "rest_rl"."""
        return self.name.replace("-", "_")

    @property
    def outside(self) -> tuple[str, ...]:
        """Sections whose places it reads, and whose states are part of its key in the cache."""
        return tuple(section for section in SOURCES if section in self.sections) if self.cached else ()

    @property
    def entry(self) -> str:
        """The identifier that evaluations of all policies share: "evaluate_bfcl"."""
        suffix = "" if self.evaluated is None else f"_{self.evaluated.name}"
        return self.identifier.removesuffix(suffix)

    @property
    def loads_models_or_data(self) -> bool:
        """Whether it downloads models or data: its pods have the cache volume and the hub's token."""
        return self.gpu or self.kind == "Dataset"

    @property
    def secrets(self) -> frozenset[str]:
        """The Secrets that its pods need (`secrets` in platform.yaml).

        What it records goes to MLflow, and files from the pod itself to the bucket that is MLflow's artifact store; a
        model's source, of which weights or the tokenizer are read, may be on the hub. The end of a run is told to a
        webhook, and preflight looks whether its address is there.
        """
        needed = {"tracking": ("mlflow", "s3"), "storage": ("s3",), "model": ("hugging_face", "s3"), "data": ("s3",)}
        own = {secret for section in self.sections for secret in needed.get(section, ())}
        return frozenset(own | {"webhook"} if self.part == "cluster" else own)

    def enabled(self, config: Config) -> bool:
        """Whether it does its work under a configuration, or passes on its input, or says why it did nothing."""
        one = self.evaluated
        if one is not None and not (one.name in config.evaluation.policies and config.enabled(one.switch)):
            return False
        return config.enabled(self.switch)

    @property
    def main_metrics(self) -> frozenset[str]:
        """Those that MLflow has on the pipeline's run as well."""
        return frozenset(figure.metric for figure in self.figures if figure.main)

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        loaded: Callable[..., Any] = resolve(self.function)
        return loaded


def resolve(path: str) -> Any:
    """The object that "module:name" stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
