"""The pipeline: preflight → prepare-data → sft-warmup → rest-rl → evaluate-bfcl ∥ evaluate-api-bank →
compare-and-register, and report-status when all has ended.

A stage that the configuration switches off still has its place: it passes its input on (see `rest_core.stages`), so
that the graph is the same for every run. preflight and report-status are of clusters alone: on one machine nothing can
be missing that the first stage would not miss at once, and `pipelines.local` tells a failure itself.
"""

import re
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
from pipelines.platform import CACHED_STAGES, Platform
from rest_core.config import Config
from rest_core.errors import UserError
from rest_core.operations.status.final import Links

# The stages in their order, by the names of their tasks.
STAGES = ("prepare-data", "sft-warmup", "rest-rl", "evaluate-bfcl", "evaluate-api-bank", "compare-and-register")
PARAMETERS = ("model", "data", "sft", "rl", "bfcl", "api_bank", "registry", "tracking", "storage", "launch")
_COMMON = ("model", "tracking", "pipeline_run")


def build(config: Config, *, platform: Platform | None = None) -> GraphComponent:
    """The pipeline with `config` as the default of its parameters, one parameter a section.

    Args:
        config: defaults of the parameters; a submitted run may replace any section.
        platform: where and how the pods of a cluster run; None for a run on this machine.

    Raises:
        UserError: the configuration does not go with the platform.
    """
    config = on_platform(config, platform)
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
        storage: dict = default["storage"],
        launch: dict = default["launch"],
        pipeline_run: str = "",
    ) -> None:
        sections: dict[str, Any] = {"model": model, "data": data, "sft": sft, "rl": rl, "bfcl": bfcl}
        sections |= {"api_bank": api_bank, "registry": registry, "tracking": tracking}
        sections |= {"storage": storage, "launch": launch, "pipeline_run": pipeline_run}
        with watched(sections, platform, config) as checked:
            settle(line(sections, after=checked), platform, config)

    return rest_pipeline


@contextmanager
def watched(sections: dict[str, Any], platform: Platform | None, config: Config) -> Iterator[dsl.PipelineTask | None]:
    """Around the stages of a run on a cluster: report-status runs last, come what may.

    Args:
        sections: the sections of the configuration and `pipeline_run`, as parameters of the pipeline.
        platform: where and how the pods run; None = a local run, around which there is nothing.
        config: what the pipeline is compiled with.

    Yields:
        The task of preflight, which the first stage has to wait for.
    """
    if platform is None:
        yield None
        return
    from pipelines.placement import place, surroundings

    # KFP itself fills in `final`, the status of what the handler surrounds.
    links = Links(kfp=platform.kfp_url).to_parameter()
    status = report_status(links=links, **_of(sections, "tracking", "storage", "launch", "pipeline_run"))
    place(status, "report-status", platform, config)
    with dsl.ExitHandler(status, name="run"):
        checked = preflight(
            surroundings=surroundings(platform, config).to_parameter(),
            **_of(sections, *PARAMETERS, "pipeline_run"),
            **{name: sections[name] for name in ("ablation", "trials") if name in sections},
        )
        place(checked, "preflight", platform, config)
        yield checked


def settle(tasks: dict[str, dsl.PipelineTask], platform: Platform | None, config: Config) -> None:
    """Put the tasks of stages, by the stages' names, where and how the platform says; None = a local run."""
    for stage, task in tasks.items():
        if platform is None:
            task.set_caching_options(stage in CACHED_STAGES)
            continue
        from pipelines.placement import place

        place(task, stage, platform, config)


def line(sections: dict[str, Any], *, after: dsl.PipelineTask | None = None) -> dict[str, dsl.PipelineTask]:
    """The stages from data to registered model, by their names, in a pipeline that is being built.

    Args:
        sections: the sections of the configuration and `pipeline_run`, as parameters of the pipeline. An empty
            pipeline_run means the KFP run's id, which each pod reads from its label.
        after: a task that must have succeeded before the first stage.
    """
    tasks = start(sections, after=after)
    tasks |= train_and_evaluate(sections, tasks)
    registered = compare_and_register(
        **_of(sections, "registry", "tracking", "pipeline_run"),
        dataset=tasks["prepare-data"].outputs["dataset"],
        policy=tasks["rest-rl"].outputs["trained"],
        bfcl=tasks["evaluate-bfcl"].outputs["report"],
        api_bank=tasks["evaluate-api-bank"].outputs["report"],
    )
    return {**tasks, "compare-and-register": registered}


def start(sections: dict[str, Any], *, after: dsl.PipelineTask | None = None) -> dict[str, dsl.PipelineTask]:
    """Data and warm-up, which the trials of an ablation share."""
    common = _of(sections, *_COMMON)
    prepared = prepare_data(**common, **_of(sections, "data", "api_bank", "storage"))
    if after is not None:
        prepared.after(after)
    warmed = sft_warmup(**common, **_of(sections, "sft", "launch", "storage"), dataset=prepared.outputs["dataset"])
    return {"prepare-data": prepared, "sft-warmup": warmed}


def train_and_evaluate(
    sections: dict[str, Any], started: dict[str, dsl.PipelineTask], **trial: Any
) -> dict[str, dsl.PipelineTask]:
    """The training and its evaluations, from what `start` has made; `trial` is that of an ablation."""
    common = _of(sections, *_COMMON)
    trained = rest_rl(
        **common,
        **_of(sections, "rl", "launch", "storage"),
        dataset=started["prepare-data"].outputs["dataset"],
        policy=started["sft-warmup"].outputs["policy"],
        **trial,
    )
    policy = trained.outputs["trained"]
    on_bfcl = evaluate_bfcl(**common, bfcl=sections["bfcl"], policy=policy)
    on_api_bank = evaluate_api_bank(**common, api_bank=sections["api_bank"], policy=policy)
    return {"rest-rl": trained, "evaluate-bfcl": on_bfcl, "evaluate-api-bank": on_api_bank}


def on_platform(config: Config, platform: Platform | None) -> Config:
    """The configuration with what the platform decides of it: where large outputs lie, how trainings are started.

    Raises:
        UserError: outputs would be lost with their pods, or a training on several nodes has no place to share.
    """
    if platform is None:
        return config
    from pipelines.nodes import launch_on, storage_on

    storage, launch = storage_on(platform, config.storage), launch_on(platform, config.launch)
    if storage.location is not None:
        platform.require_lasting(storage.location)
    elif launch.train_job is not None and config.rl.enabled:
        raise UserError(
            f"a training on {launch.train_job.nodes} nodes: they share nothing but a storage location; set "
            "storage.location in platform.yaml, or stages.rest_rl.nodes to 1"
        )
    return config.model_copy(update={"storage": storage, "launch": launch})


def compile_to(path: Path, pipeline: GraphComponent) -> None:
    """Write the pipeline's KFP YAML (pipeline spec and platform spec) to `path`; the same pipeline is the same file."""
    if path.suffix != ".yaml":
        raise UserError(f"{path}: KFP reads pipelines from .yaml files; name it {path.with_suffix('.yaml').name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, package_path=str(path))
        # In the comments at its head KFP repeats the defaults, their keys in another order each time.
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"(?m)^(#    \w+: (?:dict|list)) \[Default: .*\]$", r"\1", text), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def _of(sections: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: sections[name] for name in names}
