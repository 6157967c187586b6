"""The pipeline: preflight → prepare-data → sft-warmup → rest-rl → evaluate-bfcl ∥ evaluate-api-bank →
compare-and-register, and report-status when all has ended.

A stage that the configuration switches off still has its place: it passes its input on (see `rest_core.stages`), so
that the graph is the same for every run. preflight and report-status are of clusters alone: on one machine nothing can
be missing that the first stage would not miss at once, and `pipelines.local` tells a failure itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfp import compiler, dsl
from kfp.dsl.graph_component import GraphComponent

from components.compare_and_register.component import compare_and_register
from components.evaluate_api_bank.component import evaluate_api_bank
from components.evaluate_bfcl.component import evaluate_bfcl
from components.preflight.component import preflight
from components.prepare_data.component import prepare_data
from components.report_status.component import report_status
from components.rest_rl.component import rest_rl
from components.sft_warmup.component import sft_warmup
from pipelines.placement import identify, place, surroundings
from pipelines.platform import Platform
from rest_core.config import Config
from rest_core.errors import UserError

# The stages in their order, by the names of their tasks.
STAGES = ("prepare-data", "sft-warmup", "rest-rl", "evaluate-bfcl", "evaluate-api-bank", "compare-and-register")
PARAMETERS = ("model", "data", "sft", "rl", "bfcl", "api_bank", "registry", "tracking")


def build(config: Config, *, platform: Platform | None = None) -> GraphComponent:
    """The pipeline with `config` as the default of its parameters, one parameter a section.

    Args:
        config: defaults of the parameters; a submitted run may replace any section.
        platform: where and how the pods of a cluster run; None for a run on this machine.
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
        sections: dict[str, Any] = {"model": model, "data": data, "sft": sft, "rl": rl, "bfcl": bfcl}
        sections |= {"api_bank": api_bank, "registry": registry, "tracking": tracking, "pipeline_run": pipeline_run}
        if platform is None:
            for stage, task in line(sections).items():
                identify(task, stage)
        else:
            with watched(platform, sections) as checked:
                for stage, task in line(sections, after=checked).items():
                    place(task, platform, stage)

    return rest_pipeline


@contextmanager
def watched(platform: Platform, sections: dict[str, Any]) -> Iterator[dsl.PipelineTask]:
    """Around the stages of a run on a cluster: report-status runs last, come what may.

    Args:
        platform: where and how the pods run.
        sections: the sections of the configuration and `pipeline_run`, as parameters of the pipeline.

    Yields:
        The task of preflight, which the first stage has to wait for.
    """
    # KFP itself fills in `final`, the status of what the handler surrounds.
    links = {"kfp": platform.kfp_url or "null"}
    status = report_status(links=links, **_of(sections, "tracking", "pipeline_run"))
    place(status, platform, "report-status")
    with dsl.ExitHandler(status, name="run"):
        checked = preflight(
            surroundings=surroundings(platform).to_parameter(),
            **_of(sections, "model", "data", "sft", "rl", "api_bank", "registry", "tracking", "pipeline_run"),
        )
        place(checked, platform, "preflight")
        yield checked


def line(sections: dict[str, Any], *, after: dsl.PipelineTask | None = None) -> dict[str, dsl.PipelineTask]:
    """The stages from data to registered model, by their names, in a pipeline that is being built.

    Args:
        sections: the sections of the configuration and `pipeline_run`, as parameters of the pipeline. An empty
            pipeline_run means the KFP run's id, which each pod reads from its label.
        after: a task that must have succeeded before the first stage.
    """
    common = _of(sections, "model", "tracking", "pipeline_run")
    prepared = prepare_data(**common, **_of(sections, "data", "api_bank"))
    if after is not None:
        prepared.after(after)
    dataset = prepared.outputs["dataset"]
    warmed = sft_warmup(**common, sft=sections["sft"], dataset=dataset)
    trained = rest_rl(**common, rl=sections["rl"], dataset=dataset, policy=warmed.outputs["policy"])
    policy = trained.outputs["trained"]
    on_bfcl = evaluate_bfcl(**common, bfcl=sections["bfcl"], policy=policy)
    on_api_bank = evaluate_api_bank(**common, api_bank=sections["api_bank"], policy=policy)
    registered = compare_and_register(
        **_of(sections, "registry", "tracking", "pipeline_run"),
        dataset=dataset,
        policy=policy,
        bfcl=on_bfcl.outputs["report"],
        api_bank=on_api_bank.outputs["report"],
    )
    return dict(zip(STAGES, (prepared, warmed, trained, on_bfcl, on_api_bank, registered), strict=True))


def compile_to(path: Path, pipeline: GraphComponent) -> None:
    """Write the pipeline's KFP YAML (pipeline spec and platform spec) to `path`."""
    if path.suffix != ".yaml":
        raise UserError(f"{path}: KFP reads pipelines from .yaml files; name it {path.with_suffix('.yaml').name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, package_path=str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _of(sections: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: sections[name] for name in names}
