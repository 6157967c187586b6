"""Our own pipelines hold nothing that kfp.local gets wrong: a local run does what a cluster does."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import json_format

from pipelines import ablation_pipeline, rest_pipeline
from pipelines.local_limits import Finding, check, require_runnable
from rest_core import config
from rest_core.ablation.settings import AblationConfig, parse_schemes
from rest_core.errors import UserError


@pytest.fixture(params=["rest", "ablation"])
def pipeline(request: pytest.FixtureRequest) -> Any:
    if request.param == "rest":
        return rest_pipeline.build(config.load("tiny"))
    schemes = parse_schemes(["uniform", "paper"])
    settings = AblationConfig(metric="reward/after")
    return ablation_pipeline.build(config.load("tiny"), schemes=schemes, seeds=[0, 1], ablation=settings)


def test_nothing_in_our_pipelines_goes_wrong_locally(pipeline: Any) -> None:
    findings = check(pipeline.pipeline_spec, json_format.MessageToDict(pipeline.platform_spec))
    assert [str(finding) for finding in findings if finding.effect != "ignored"] == []
    assert findings  # the run's id from the pod's label, which a local run is given as a parameter


def test_the_check_sees_into_loops(pipeline: Any) -> None:
    """Each task of ours has a setting that is ignored locally: if one is missing here, its container was not seen."""
    platform = json_format.MessageToDict(pipeline.platform_spec)
    seen = {finding.task.split(" / ")[-1] for finding in check(pipeline.pipeline_spec, platform)}
    labels = pipeline.pipeline_spec.deployment_spec["executors"]
    assert seen == {label.removeprefix("exec-") for label in labels}


def test_the_check_leaves_the_pipeline_as_it_was(pipeline: Any) -> None:
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
