"""Writes each stage's component and its README from the catalogue: `make compile`.

KFP reads a component from the source of a function, so that there has to be a file a stage.
"""

from __future__ import annotations

import inspect
from pathlib import Path

from rest_core.operations.catalogue import STAGES, inputs_of
from rest_core.operations.catalogue_entry import Stage, state_of

_COMPONENT = '''"""KFP component of the stage {name}, written by `make compile` from the catalogue of stages."""
{typing}
from kfp import dsl

from components.images import image


@dsl.component(base_image=image("{image}"), install_kfp_package=False)
def {identifier}(
{parameters}
) -> None:
    """{summary}"""
    arguments = locals()
    from components.runtime import run_component

    run_component("{name}", arguments)
'''
_TYPING = "\nfrom typing import List  # noqa: UP035  (KFP knows lists of artifacts by this name)\n"
_EMPTY = {"dict": "{}", "list": "[]"}


def write(folder: Path) -> list[Path]:
    """Write the folder of each stage's component into `folder`; the files' paths."""
    written = []
    for stage in STAGES:
        place = folder / stage.identifier
        place.mkdir(exist_ok=True)
        for name, text in {"__init__.py": "", "component.py": component(stage), "README.md": readme(stage)}.items():
            (place / name).write_text(text, encoding="utf-8")
            written.append(place / name)
    return written


def component(stage: Stage) -> str:
    """The source of a stage's component."""
    lists = stage.part == "ablation"  # of the trials' reports
    parameters = [f"{section}: dict," for section in stage.sections]
    parameters += [f"{name}: {one.annotation}," for name, one in stage.parameters if not one.optional]
    parameters.append("pipeline_run: str,")
    parameters += [f"{state_of(section)}: str," for section in stage.outside]
    for name, producer in inputs_of(stage).items():
        many = lists and producer.part == "trial"
        artifact = f"List[dsl.{producer.kind}]" if many else f"dsl.{producer.kind}"
        parameters.append(f"{name}: dsl.Input[{artifact}],{'  # noqa: UP006' if many else ''}")
    parameters.append(f"{stage.output}: dsl.Output[dsl.{stage.kind}],")
    if stage.page is not None:
        parameters.append(f"page: dsl.Output[dsl.{stage.page[1]}],")
    parameters.append("metrics: dsl.Output[dsl.Metrics],")
    parameters += [
        f"{state_of(section)}: dsl.OutputPath(str),  # type: ignore[valid-type]" for section in stage.looks_at
    ]
    for name, one in stage.parameters:
        if one.optional:
            parameters.append(f"{name}: {one.annotation} = {_EMPTY[one.annotation]},  # noqa: B006")
    return _COMPONENT.format(
        name=stage.name,
        identifier=stage.identifier,
        summary=stage.summary,
        image=stage.image,
        typing=_TYPING if lists else "",
        parameters="\n".join(f"    {parameter}" for parameter in parameters),
    )


def readme(stage: Stage) -> str:
    """The README of a stage's component."""
    module, _, function = stage.function.partition(":")
    by_hand = f"; by hand: `rest {stage.command.name}`" if stage.command is not None else ""
    rows = [f"| in | {', '.join(f'`{section}`' for section in stage.sections)} | sections of the configuration |"]
    rows += [
        f"| in | `{name}` | `{one.model.partition(':')[2]}`{'; empty = none' if one.optional else ''} |"
        for name, one in stage.parameters
    ]
    rows.append("| in | `pipeline_run` | the pipeline run in MLflow; empty = the KFP run's id |")
    rows += [
        f"| in | `{state_of(section)}` | of what lies at the places of `{section}`, for the cache |"
        for section in stage.outside
    ]
    rows += [
        f"| in | `{name}` | {producer.kind} of {producer.name}"
        f"{', of each trial' if stage.part == 'ablation' and producer.part == 'trial' else ''} |"
        for name, producer in inputs_of(stage).items()
    ]
    rows.append(f"| out | `{stage.output}` | {stage.kind}: {stage.contents}; metrics.json, manifest.json |")
    if stage.page is not None:
        rows.append(f"| out | `page` | {stage.page[1]}: {stage.page[0]}, for KFP's pages |")
    rows.append("| out | `metrics` | Metrics: the stage's figures, its seconds and its peak memory |")
    rows += [f"| out | `{state_of(section)}` | what lies at the places of `{section}` |" for section in stage.looks_at]
    runs = [f"Image `{stage.image}`", "may have GPUs" if stage.gpu else "no GPU"]
    runs.append("cached" if stage.cached else "not cached")
    if stage.switch is not None:
        runs.append(f"switched off by `{stage.switch}.enabled: false`")
    return f"""# {stage.name}

{_paragraphs(stage)}

Calls `{module}.{function}`{by_hand}.
{", ".join(runs)}. Its pod: `stages.{stage.entry}` of `platform.yaml`.

| | name | what |
|---|---|---|
{chr(10).join(rows)}

Written by `make compile`; what it says stands in `rest_core/operations/catalogue.py` and the function's docstring.
"""


def _paragraphs(stage: Stage) -> str:
    """The docstring of the stage's function, without what it says of arguments and errors."""
    text = inspect.getdoc(stage.load()) or ""
    return text.partition("\n\nArgs:")[0].partition("\n\nRaises:")[0]


if __name__ == "__main__":
    write(Path(__file__).parent)
