"""Our own pipelines hold nothing that kfp.local gets wrong: a local run does what a cluster does."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from pipelines import ablation_pipeline, rest_pipeline
from pipelines.local_limits import Finding, check, require_runnable
from pipelines.platform import Platform
from rest_core import config
from rest_core.ablation.settings import AblationConfig, parse_schemes
from rest_core.errors import UserError

PIPELINES = pytest.mark.parametrize("name", ["rest", "ablation"])


def _pipeline(name: str, platform: Platform | None = None) -> Any:
    if name == "rest":
        return rest_pipeline.build(config.load("tiny"), platform=platform)
    trials = {"schemes": parse_schemes(["uniform", "paper"]), "seeds": [0, 1]}
    settings = AblationConfig(metric="reward/after")
    return ablation_pipeline.build(config.load("tiny"), **trials, ablation=settings, platform=platform)


@PIPELINES
def test_nothing_in_our_pipelines_goes_wrong_locally(name: str) -> None:
    pipeline = _pipeline(name)
    assert check(pipeline.pipeline_spec, json_format.MessageToDict(pipeline.platform_spec)) == []


@PIPELINES
def test_the_check_sees_into_loops(name: str) -> None:
    """On a cluster each task has a setting that is ignored locally: one that is missing here was not looked at."""
    pipeline = _pipeline(name, Platform())
    platform = json_format.MessageToDict(pipeline.platform_spec)
    seen = {finding.task.split(" / ")[-1] for finding in check(pipeline.pipeline_spec, platform)}
    labels = pipeline.pipeline_spec.deployment_spec["executors"]
    assert seen == {label.removeprefix("exec-") for label in labels}


def test_the_check_leaves_the_pipeline_as_it_was() -> None:
    pipeline = _pipeline("ablation")
    before = json_format.MessageToJson(pipeline.pipeline_spec)
    check(pipeline.pipeline_spec)
    assert json_format.MessageToJson(pipeline.pipeline_spec) == before


def test_a_value_that_the_local_runner_would_change_is_refused() -> None:
    require_runnable(rest_pipeline.build(config.load("tiny")))
    changed = rest_pipeline.build(config.load("tiny", ("model.source=/opt/python3/model",)))
    with pytest.raises(UserError, match=r"pipeline: 'python3' in default of the parameter model: .* \(wrong\)"):
        require_runnable(changed)


def test_a_finding_in_one_line() -> None:
    finding = Finding("trials / rest-rl", "a thing", "wrong", "does another")
    assert str(finding) == "trials / rest-rl: a thing: does another (wrong)"
