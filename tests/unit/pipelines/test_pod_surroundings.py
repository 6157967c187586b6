"""Variables, files, scratch space, affinity and the run as a whole: from platform.yaml into every pod that needs it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from compiled import Compiled, compile_for

from pipelines.build import PipelineName
from pipelines.cluster.request import run_request
from pipelines.cluster.schedules import request as schedule_request
from pipelines.nodes import launch_on
from pipelines.platform import Platform
from rest_core.config import LaunchConfig, load, validate
from rest_core.operations.catalogue import CATALOGUE, STAGES
from rest_core.operations.preflight.surroundings import Surroundings

CLUSTER = {"preflight", "report-status"}  # which start without what is missing, to report it
AFFINITY = [
    {"key": "zone", "operator": "In", "values": ["a", "b"]},
    {"key": "cores", "operator": "Gt", "values": ["16"]},
    {"key": "spot", "operator": "DoesNotExist", "weight": 10},
]
PLATFORM: dict[str, Any] = {
    "env": {
        "HTTPS_PROXY": "http://proxy:3128",
        "MLFLOW_WORKSPACE": "team",
        "MLFLOW_BOTO_CLIENT_ADDRESSING_STYLE": "path",
    },
    "env_from": [{"config_map": "proxy", "keys": ["NO_PROXY"]}, {"secret": "extra", "keys": ["MY_TOKEN"]}],
    "files": [{"config_map": "company-ca", "path": "/etc/company"}, {"secret": "client-cert", "path": "/etc/client/"}],
    "ca_bundle": "/etc/company/ca.crt",
    "volumes": {"scratch": {"size": "500Gi"}},
    "storage": {"location": "s3://bucket/runs"},
    "workflow": {"active_deadline_seconds": 86400, "ttl_seconds_after_finished": 3600},
    "stages": {"rest_rl": {"node_affinity": AFFINITY}},
}
VARIABLES = {
    **PLATFORM["env"],
    **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"), "/etc/company/ca.crt"),
}


@pytest.fixture(scope="module", params=["rest", "ablation"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_for(tmp_path_factory.mktemp("compiled"), PLATFORM, request.param)


def test_variables_and_files_reach_every_pod(compiled: Compiled) -> None:
    for task, pod in compiled.pods.items():
        assert compiled.environment(task).items() >= VARIABLES.items()
        optional = task in CLUSTER
        (config_map,) = pod.config_map_as_env
        assert config_map.config_map_name_parameter.runtime_value.constant.string_value == "proxy"
        assert [entry.env_var for entry in config_map.key_to_env] == ["NO_PROXY"]
        assert config_map.optional == optional
        assert compiled.secrets(task) == {"MY_TOKEN": ("extra", optional)}
        (config_maps,), (secrets,) = pod.config_map_as_volume, pod.secret_as_volume
        assert config_maps.config_map_name_parameter.runtime_value.constant.string_value == "company-ca"
        assert secrets.secret_name_parameter.runtime_value.constant.string_value == "client-cert"
        assert (config_maps.mount_path, secrets.mount_path) == ("/etc/company", "/etc/client/")
        assert config_maps.optional == secrets.optional == optional


def test_preflight_is_told_of_them(compiled: Compiled) -> None:
    told = validate(Surroundings, compiled.surroundings(), where="surroundings")
    assert [(one.kind, one.name, one.variables) for one in told.secrets] == [
        ("ConfigMap", "proxy", ("NO_PROXY",)),
        ("Secret", "extra", ("MY_TOKEN",)),
    ]
    assert [(one.kind, one.name, one.path) for one in told.files] == [
        ("ConfigMap", "company-ca", "/etc/company"),
        ("Secret", "client-cert", "/etc/client/"),
    ]
    assert told.ca_bundle == "/etc/company/ca.crt"
    (asked,) = told.asked
    assert (asked.stage, [term.key for term in asked.node_affinity]) == ("rest-rl", ["zone", "cores", "spot"])


def test_scratch_space_is_of_the_pods_that_work(compiled: Compiled) -> None:
    for task, pod in compiled.pods.items():
        mounts = [(one.volume_name, one.mount_path, one.size_limit, one.medium) for one in pod.empty_dir_mounts]
        environment = compiled.environment(task)
        if task in CLUSTER:
            assert not mounts and "TMPDIR" not in environment
        else:
            assert mounts == [("scratch", "/scratch", "500Gi", "")]
            assert environment["TMPDIR"] == "/scratch"
            assert environment["XDG_CACHE_HOME"] == "/scratch/.cache"


def test_scratch_space_of_a_storage_class(tmp_path: Path) -> None:
    scratch = {"size": "500Gi", "storage_class": "fast", "path": "/tmp/room"}
    volumes = {"scratch": scratch, "model_cache": {"claim": "cache", "path": "/cache"}}
    compiled = compile_for(tmp_path, {"volumes": volumes})
    (volume,) = compiled.pods["rest-rl"].generic_ephemeral_volume
    assert (volume.volume_name, volume.mount_path, volume.size) == ("scratch", "/tmp/room", "500Gi")
    assert (volume.storage_class_name, list(volume.access_modes)) == ("fast", ["ReadWriteOnce"])
    assert compiled.environment("rest-rl")["XDG_CACHE_HOME"] == "/cache"
    assert "XDG_CACHE_HOME" not in compiled.environment("compare-and-register")  # which does not mount it


def test_node_affinity_is_of_its_stage(compiled: Compiled) -> None:
    required, preferred = compiled.pods["rest-rl"].node_affinity
    assert [(one.key, one.operator, list(one.values)) for one in required.match_expressions] == [
        ("zone", "In", ["a", "b"]),
        ("cores", "Gt", ["16"]),
    ]
    assert not required.HasField("weight") and preferred.weight == 10
    assert [(one.key, one.operator) for one in preferred.match_expressions] == [("spot", "DoesNotExist")]
    assert not any(pod.node_affinity for task, pod in compiled.pods.items() if task != "rest-rl")


@pytest.mark.parametrize("pipeline", ["rest", "ablation"])
def test_a_run_as_a_whole_has_a_deadline_and_is_cleaned_up(tmp_path: Path, pipeline: PipelineName) -> None:
    def settings(platform: dict[str, Any]) -> dict[str, Any]:
        compile_for(tmp_path, platform, pipeline)
        _, kubernetes = yaml.safe_load_all((tmp_path / f"{pipeline}.yaml").read_text())
        return kubernetes["platforms"]["kubernetes"].get("pipelineConfig", {})

    found = settings(PLATFORM)
    assert found["resourceTtlOnCompletion"] == 3600
    assert 86400 in found.values()
    assert settings({}) == {}


def test_the_nodes_of_a_train_job_have_the_same() -> None:
    stages = {"rest_rl": {"nodes": 2, "node_affinity": AFFINITY}}
    job = launch_on(Platform.model_validate({**PLATFORM, "stages": stages}), LaunchConfig()).train_job
    assert job is not None
    assert job.environment.items() >= {**VARIABLES, "TMPDIR": "/scratch", "XDG_CACHE_HOME": "/scratch/.cache"}.items()
    assert list(job.volumes) == [
        {"name": "company-ca", "configMap": {"name": "company-ca"}},
        {"name": "client-cert", "secret": {"secretName": "client-cert"}},
        {"name": "scratch", "emptyDir": {"sizeLimit": "500Gi"}},
    ]
    assert list(job.volume_mounts) == [
        {"name": "company-ca", "mountPath": "/etc/company", "readOnly": True},
        {"name": "client-cert", "mountPath": "/etc/client/", "readOnly": True},
        {"name": "scratch", "mountPath": "/scratch"},
    ]
    node = job.affinity["nodeAffinity"]
    (term,) = node["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert [one["key"] for one in term["matchExpressions"]] == ["zone", "cores"]
    (wish,) = node["preferredDuringSchedulingIgnoredDuringExecution"]
    assert wish == {"weight": 10, "preference": {"matchExpressions": [{"key": "spot", "operator": "DoesNotExist"}]}}


@pytest.mark.parametrize(
    ("plugin", "sent"),
    [
        (None, None),
        ({}, {"mlflow": {"experiment_name": "rest"}}),
        ({"experiment_name": "mine"}, {"mlflow": {"experiment_name": "mine"}}),
        ({"disabled": True}, {"mlflow": {"disabled": True}}),
    ],
)
def test_kfps_mlflow_plugin_is_told_the_experiment(plugin: Any, sent: Any) -> None:
    run = run_request(load("tiny"), Platform.model_validate({"mlflow_plugin": plugin}))
    assert run.plugins_input == sent
    times = {"cron": None, "every": "1d", "start": None, "end": None}
    settings: dict[str, Any] = {"max_concurrency": 1, "catch_up": False, "disabled": False}
    assert schedule_request(run, **times, **settings).plugins_input == sent


def test_a_stage_has_the_secrets_that_its_sections_ask_for() -> None:
    downloads = {stage.name for stage in STAGES if stage.loads_models_or_data} | {"preflight"}
    assert {stage.name for stage in STAGES if "hugging_face" in stage.secrets} == downloads
    stage = CATALOGUE["aggregate"]
    assert stage.secrets == {"mlflow", "s3"}  # MLflow's artifacts go from the pod to its bucket
    assert replace(stage, sections=("gate",)).secrets == set()
    assert replace(stage, sections=("storage",)).secrets == {"s3"}
