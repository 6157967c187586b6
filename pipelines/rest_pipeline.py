"""The pipeline of one training: preflight → prepare-data → sft-warmup → rest-rl → evaluations → compare-policies →
compare-and-register, and report-status at the end; deploy-model before it where the platform serves models. Base model,
warm-up, trained policy and champion are evaluated.

A stage that the configuration switches off still has its place: it passes its input on (see `rest_core.stages`), so
that the graph is the same for every run.
"""

from __future__ import annotations

from typing import Any

from kfp.dsl.graph_component import GraphComponent

from pipelines.cluster.kserve import service_of
from pipelines.graph import add, around, on_platform, pipeline, section_parameters
from pipelines.platform import Platform
from rest_core.config import Config
from rest_core.operations.catalogue import CATALOGUE, PIPELINE


def build(config: Config, *, platform: Platform | None = None) -> GraphComponent:
    """The pipeline with `config` as the default of its parameters, one parameter a section.

    Args:
        config: defaults of the parameters; a submitted run may replace any section.
        platform: where and how the pods of a cluster run; None for a run on this machine.

    Raises:
        UserError: the configuration does not go with the platform.
    """
    config = on_platform(config, platform)

    def body(sections: dict[str, Any]) -> None:
        with around(sections, platform, config) as tasks:
            for stage in PIPELINE:
                add(stage, sections, tasks)
            if platform is not None and platform.serving.apply is not None:
                service = service_of(platform, platform.serving.apply).to_parameter()
                add(CATALOGUE["deploy-model"], sections, tasks, service=service)

    parameters = {**section_parameters(config), "pipeline_run": (str, "")}
    description = "Prepare data, warm up, train with ResT, evaluate, compare, register"
    return pipeline("rest-pipeline", description, parameters, body, platform)
