"""The parts that KFP pipelines of this project are built from, as the catalogue of stages describes them."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfp import compiler, dsl
from kfp.dsl.graph_component import GraphComponent

from pipelines.platform import Platform
from rest_core.config import Config
from rest_core.errors import UserError
from rest_core.operations.catalogue import CATALOGUE, SECTIONS, inputs_of
from rest_core.operations.catalogue_entry import Stage, state_of
from rest_core.operations.status.final import Links

Tasks = dict[str, dsl.PipelineTask]  # by the names of the stages


def pipeline(
    name: str,
    description: str,
    parameters: Mapping[str, tuple[Any, Any]],
    body: Callable[[dict[str, Any]], None],
    platform: Platform | None = None,
) -> GraphComponent:
    """A KFP pipeline of these parameters, in the order given.

    Args:
        name: of the pipeline, as KFP shows it.
        parameters: type and default of each.
        body: gets the parameters by name, and makes the tasks.
        platform: has the settings of a run as a whole.
    """

    def graph(*values: Any) -> None:
        body(dict(zip(parameters, values, strict=True)))

    graph.__name__ = name.replace("-", "_")
    graph.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(key, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation, default=default)
            for key, (annotation, default) in parameters.items()
        ]
    )
    settings = dsl.PipelineConfig(**platform.workflow.model_dump()) if platform is not None else None
    built: GraphComponent = dsl.pipeline(name=name, description=description, pipeline_config=settings)(graph)
    return built


def section_parameters(config: Config, *left_out: str) -> dict[str, tuple[Any, Any]]:
    """One parameter a section of the configuration, which is its default."""
    return {name: (dict, getattr(config, name).to_parameter()) for name in SECTIONS if name not in left_out}


def component_of(stage: Stage) -> Any:
    """The KFP component of a stage."""
    return getattr(importlib.import_module(f"components.{stage.identifier}.component"), stage.identifier)


def add(
    stage: Stage,
    sections: Mapping[str, Any],
    tasks: Tasks,
    *,
    collect: Callable[[Any], Any] = lambda artifact: artifact,
    **parameters: Any,
) -> dsl.PipelineTask:
    """Make the task of a stage in the pipeline that is being built, and note it in `tasks`.

    Args:
        sections: the sections of the configuration, `pipeline_run` and what `around` adds, as parameters of the
            pipeline. An empty pipeline_run means the KFP run's id, which each pod reads from its label.
        tasks: of the stages whose outputs it reads.
        collect: what the stage gets of an output that in a loop is one of many.
        parameters: those of the stage that are no sections.
    """
    inputs = {}
    for name, producer in inputs_of(stage).items():
        artifact = tasks[producer.name].outputs[producer.output]
        inputs[name] = collect(artifact) if producer.part == "trial" else artifact
    given = {name: sections[name] for name in (*stage.sections, "pipeline_run", *map(state_of, stage.outside))}
    tasks[stage.name] = component_of(stage)(**given, **inputs, **parameters)
    return tasks[stage.name].after(*(tasks[name] for name in stage.after))


@contextmanager
def around(sections: dict[str, Any], platform: Platform | None, config: Config) -> Iterator[Tasks]:
    """The tasks around a run on a cluster: preflight before the first stage, report-status at the end in any case.

    Args:
        sections: as in `add`; gets the states of the places that the run reads, which preflight finds.
        platform: where and how the pods run; None = a local run, around which there is nothing: on one machine nothing
            can be missing that the first stage would not miss at once, and `pipelines.local` reports a failure itself.
        config: what the pipeline is compiled with.

    Yields:
        A mapping for the tasks of the stages; when the block ends, each is placed as the platform says.
    """
    tasks: Tasks = {}
    if platform is None:
        from rest_core.operations.preflight import states

        sections.update({state_of(name): state for name, state in states.of_this_machine(config).items()})
        yield tasks
        for task in tasks.values():
            task.set_caching_options(True)  # the cache is the run's own: what is done is not done again
        return
    from pipelines.placement import place, surroundings

    # KFP itself fills in `final`, the status of what the handler surrounds.
    links = Links(kfp=platform.kfp_url).to_parameter()
    status = add(CATALOGUE["report-status"], sections, {}, links=links)
    place(status, CATALOGUE["report-status"], platform, config)
    with dsl.ExitHandler(status, name="run"):
        promised = surroundings(platform, config).to_parameter()
        compared = {name: sections[name] for name in ("ablation", "trials") if name in sections}
        checked = add(CATALOGUE["preflight"], sections, {}, surroundings=promised, **compared)
        place(checked, CATALOGUE["preflight"], platform, config)
        looked_at = map(state_of, CATALOGUE["preflight"].looks_at)
        sections.update({name: checked.outputs[name] for name in looked_at})
        yield tasks
        for name, task in tasks.items():
            if not (inputs_of(CATALOGUE[name]) or CATALOGUE[name].after):
                task.after(checked)
            place(task, CATALOGUE[name], platform, config)


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


def compile_to(path: Path, built: GraphComponent) -> None:
    """Write the pipeline's KFP YAML (pipeline spec and platform spec) to `path`; the same pipeline is the same file."""
    if path.suffix != ".yaml":
        raise UserError(f"{path}: KFP reads pipelines from .yaml files; name it {path.with_suffix('.yaml').name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(built, package_path=str(path))
        # In the comments at its head KFP repeats the defaults, their keys in another order each time.
        text = path.read_text(encoding="utf-8")
        path.write_text(re.sub(r"(?m)^(#    \w+: (?:dict|list)) \[Default: .*\]$", r"\1", text), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None
