"""The components are what the catalogue says, and what their stages take."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_type_hints

import pytest

from components import generate
from pipelines.graph import component_of
from rest_core.operations.catalogue import SECTIONS, STAGES, inputs_of
from rest_core.operations.catalogue_entry import Stage, state_of
from rest_core.stages.evaluation import Common

TOP = Path(__file__).resolve().parents[3]
every_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@every_stage
def test_committed_components_are_what_make_compile_writes(stage: Stage) -> None:
    folder = TOP / "components" / stage.identifier
    for name, text in (("component.py", generate.component(stage)), ("README.md", generate.readme(stage))):
        assert (folder / name).read_text(encoding="utf-8") == text, "stale: run `make compile`"


def test_there_is_no_component_without_a_stage() -> None:
    assert {path.parent.name for path in (TOP / "components").glob("*/component.py")} == {
        stage.identifier for stage in STAGES
    }


@every_stage
def test_a_component_takes_what_its_stage_takes(stage: Stage) -> None:
    component = component_of(stage)
    wanted = set(inspect.signature(stage.load()).parameters) - {"out"}
    if "sections" in wanted:  # preflight's: all of them
        wanted = wanted - {"sections"} | set(SECTIONS)
    if stage.reads_evaluations:
        wanted |= inputs_of(stage).keys()
        wanted.remove("evaluations")
    if stage.benchmark is not None:  # what all evaluations take, as far as this policy has it
        optional = {"policy", "registry", "evaluated"} - inputs_of(stage).keys() - set(stage.sections)
        wanted = (wanted - {"common"} | set(get_type_hints(Common))) - optional - {"out"}
    assert set(component.component_spec.inputs) == wanted | {state_of(section) for section in stage.outside}
    states = {state_of(section) for section in stage.looks_at}
    assert set(component.component_spec.outputs) - {"metrics", "page"} == {stage.output} | states
    assert len((TOP / "components" / stage.identifier / "component.py").read_text().splitlines()) <= 40
