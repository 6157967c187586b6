"""From platform.yaml to the sections `launch`, with the TrainJob of rest-rl, and `storage`."""

from __future__ import annotations

import pytest

from components.images import image
from pipelines.nodes import launch_on, storage_on
from pipelines.platform import Platform
from rest_core.config import LaunchConfig, StorageConfig, validate


@pytest.mark.parametrize("stages", [{}, {"rest_rl": {"nodes": 1}}])
def test_one_node_needs_no_train_job(stages: dict[str, object]) -> None:
    launch = LaunchConfig(processes=4)
    assert launch_on(Platform.model_validate({"stages": stages}), launch) is launch


def test_outputs_go_where_the_profile_says_else_the_platform() -> None:
    platform = Platform.model_validate({"storage": {"location": "s3://rest/team"}})
    assert storage_on(platform, StorageConfig()).location == "s3://rest/team"
    assert storage_on(platform, StorageConfig(location="/work/rest")).location == "/work/rest"
    assert storage_on(Platform(), StorageConfig()).location is None


def test_what_the_platform_leaves_out_is_left_out() -> None:
    launch = launch_on(Platform.model_validate({"stages": {"rest_rl": {"nodes": 3}}}), LaunchConfig(sharding="fsdp2"))
    job = launch.train_job
    assert job is not None and launch.sharding == "fsdp2"
    assert (job.nodes, job.runtime, job.namespace) == (3, "rest-torch", "kubeflow")
    assert job.image == image("train")
    assert job.environment == {"REST_IMAGE": image("train")}
    assert job.resources == {} and job.volumes == () and job.tolerations == ()


def test_the_section_is_a_pipeline_parameter() -> None:
    toleration = {"key": "a", "value": "b", "effect": "NoExecute", "toleration_seconds": 5}
    platform = Platform.model_validate(
        {
            "volumes": {"work": {"claim": "rest-work", "path": "/work", "sub_path": "team"}},
            "security_context": {"run_as_user": 1234},
            "stages": {
                "rest_rl": {
                    "nodes": 2,
                    "tolerations": [toleration],
                }
            },
        }
    )
    launch = launch_on(platform, LaunchConfig())
    assert validate(LaunchConfig, launch.to_parameter(), where="launch") == launch
    job = launch.train_job
    assert job is not None
    assert job.volume_mounts == ({"name": "work", "mountPath": "/work", "subPath": "team"},)
    assert job.security_context["runAsUser"] == 1234
    assert job.tolerations == (
        {"key": "a", "operator": "Equal", "value": "b", "effect": "NoExecute", "tolerationSeconds": 5},
    )
