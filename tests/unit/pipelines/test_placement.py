"""Where and how a compiled pipeline's pods run, of both pipelines."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from compiled import CACHED, EVALUATIONS, GPU_STAGES, PLATFORM, STAGES, Compiled, compile_for
from google.protobuf import json_format

from components.images import image
from pipelines.build import PipelineName
from rest_core import config
from rest_core.errors import UserError
from rest_core.operations.catalogue import CATALOGUE, SECTIONS
from rest_core.operations.pods import (
    GPUS_VARIABLE,
    IMAGE_VARIABLE,
    PART_OF_LABEL,
    PROJECT,
    RUN_ID_VARIABLE,
    STAGE_LABEL,
)
from rest_core.operations.preflight.surroundings import Surroundings

TOP = Path(__file__).resolve().parents[3]
CLUSTER_TASKS = {
    "rest": {"preflight", *STAGES, "report-status"},
    "ablation": {"preflight", *STAGES, "aggregate", "report-status"}
    - {stage.name for stage in CATALOGUE.values() if stage.part == "single"},
}
_DAY = 24 * 3600


@pytest.fixture(scope="module", params=["rest", "ablation"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    made = compile_for(tmp_path_factory.mktemp("compiled"), PLATFORM, request.param)
    assert set(made.tasks) == set(made.pods) == set(made.containers) == CLUSTER_TASKS[request.param]
    return made


def test_preflight_comes_first_and_evaluations_run_side_by_side(tmp_path: Path) -> None:
    compiled = compile_for(tmp_path, PLATFORM)
    assert set(compiled.spec.root.input_definitions.parameters) == {*SECTIONS, "pipeline_run"}
    before = {name: set(task.dependent_tasks) for name, task in compiled.handled.items()}
    assert before == {
        "preflight": set(),
        "prepare-data": {"preflight"},
        "sft-warmup": {"prepare-data"},
        "rest-rl": {"prepare-data", "sft-warmup"},
        **{name: {"prepare-data"} for name in EVALUATIONS if name.endswith("-champion")},
        **{name: {"prepare-data", "preflight"} for name in EVALUATIONS if name.endswith("-base")},
        **{name: {"sft-warmup"} for name in ("evaluate-bfcl-warmup", "evaluate-api-bank-warmup")},
        **{name: {"rest-rl"} for name in ("evaluate-bfcl-trained", "evaluate-api-bank-trained")},
        "compare-policies": set(EVALUATIONS),
        "compare-and-register": {
            *("prepare-data", "rest-rl", "compare-policies"),
            *EVALUATIONS,
        },
    }


def test_the_exit_task_runs_whatever_has_happened_and_is_told_how_it_ended(compiled: Compiled) -> None:
    root = compiled.spec.root.dag.tasks
    exit_task = root["report-status"]
    (handler,) = set(root) - {"report-status"}
    assert list(exit_task.dependent_tasks) == [handler]
    assert exit_task.trigger_policy.strategy == exit_task.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED
    assert exit_task.inputs.parameters["final"].task_final_status.producer_task == handler
    links = exit_task.inputs.parameters["links"].runtime_value.constant.struct_value
    assert json_format.MessageToDict(links) == {"kfp": "https://kfp.example/pipeline"}


def test_preflight_is_told_what_the_pods_are_promised(compiled: Compiled) -> None:
    surroundings = config.validate(Surroundings, compiled.surroundings(), where="surroundings")
    assert {secret.name: secret.variables for secret in surroundings.secrets} == {
        "s3-keys": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        "hf": ("HF_TOKEN",),
        "tracking": ("MLFLOW_TRACKING_URI",),
        "hook": ("REST_WEBHOOK_URL",),
    }
    assert [(mount.claim, mount.path) for mount in surroundings.mounts] == [("cache", "/cache/"), ("work", "/work")]
    asked = {one.stage: one for one in surroundings.asked if one.count}
    assert {one.stage for one in surroundings.asked} - set(asked) >= {"preflight", "prepare-data", "report-status"}
    assert (asked["rest-rl"].cpu, asked["rest-rl"].memory) == ("16", "64Gi")
    champions = {name for name in GPU_STAGES if name.endswith("-champion")}  # no part of an ablation
    assert set(asked) == set(GPU_STAGES) - set(surroundings.without_gpu)
    assert set(surroundings.without_gpu) == champions - set(compiled.tasks)
    assert (asked["rest-rl"].resource, asked["rest-rl"].count, asked["rest-rl"].nodes) == ("amd.com/gpu", 8, 1)
    assert asked["rest-rl"].node_selector == {"pool": "a100"}
    assert [one.key for one in asked["rest-rl"].tolerations] == ["gpu", "spot"]


def test_caching_is_on_for_data_and_evaluation_only(compiled: Compiled) -> None:
    cached = {name for name, task in compiled.tasks.items() if task.caching_options.enable_cache}
    assert cached == CACHED & set(compiled.tasks)


def test_what_is_cached_has_the_state_of_what_it_reads_from_outside_as_inputs(compiled: Compiled) -> None:
    """KFP's cache key has nothing else of data that has changed in its place."""
    root = compiled.handled
    reads = {"model": "model", "data": "data", "api-bank": "api_bank"}
    for task in CACHED & set(compiled.tasks):
        inputs = root[task].inputs.parameters  # none of them in a loop, where kfp.local loses such an input
        for section in {"prepare-data": reads.values()}.get(task, {"model", *(reads[k] for k in reads if k in task)}):
            producer = inputs[f"{section}_state"].task_output_parameter
            assert (producer.producer_task, producer.output_parameter_key) == ("preflight", f"{section}_state")
    assert not compiled.tasks["preflight"].caching_options.enable_cache


@pytest.mark.parametrize("pipeline", ["rest", "ablation"])
def test_the_cache_may_be_left_out_for_all_tasks(tmp_path: Path, pipeline: PipelineName) -> None:
    compiled = compile_for(tmp_path, {"cache": False}, pipeline)
    assert not [name for name, task in compiled.tasks.items() if task.caching_options.enable_cache]


def test_each_task_has_the_image_of_its_target_and_installs_nothing(compiled: Compiled) -> None:
    images = PLATFORM["images"]
    for task, container in compiled.containers.items():
        assert container.image == images.get(CATALOGUE[task].image, image("train"))
        assert compiled.environment(task)[IMAGE_VARIABLE] == container.image
        assert "pip install" not in " ".join(container.command)
        pod = compiled.pods[task]
        assert pod.image_pull_policy == "Always"
        assert [
            secret.secret_name_parameter.runtime_value.constant.string_value for secret in pod.image_pull_secret
        ] == ["registry"]


def test_resources_are_requested_and_bounded_and_gpus_go_to_gpu_stages_alone(compiled: Compiled) -> None:
    for task, container in compiled.containers.items():
        resources = container.resources
        cpu, memory = ("16", "64Gi") if task == "rest-rl" else ("2", "8Gi")
        assert (resources.resource_cpu_request, resources.resource_cpu_limit) == (cpu, cpu)
        assert (resources.resource_memory_request, resources.resource_memory_limit) == (memory, memory)
        expected = {"rest-rl": ("amd.com/gpu", "8")}.get(
            task, ("nvidia.com/gpu", "1") if task in GPU_STAGES else ("", "")
        )
        assert compiled.gpus(task) == expected
        assert compiled.environment(task).get(GPUS_VARIABLE, "") == expected[1]


_NODES = {"gpu": {"count": 8}, "nodes": 2, "memory": "512Gi", "shm_size": "64Gi", "node_selector": {"pool": "a100"}}


@pytest.mark.parametrize("pipeline", ["rest", "ablation"])
def test_a_training_on_several_nodes_asks_for_them_in_its_train_job_alone(
    tmp_path: Path, pipeline: PipelineName
) -> None:
    lasting = {"timeout_seconds": 86400, "retries": {"count": 5}}
    stages = {"default": {"memory": "8Gi"}, "rest_rl": {**_NODES, **lasting}}
    compiled = compile_for(tmp_path, {"stages": stages, "storage": {"location": "s3://bucket"}}, pipeline)
    assert compiled.gpus("rest-rl") == ("", "")
    assert compiled.containers["rest-rl"].resources.resource_memory_limit == "8Gi"
    pod = compiled.pods["rest-rl"]
    assert not pod.node_selector.labels and not pod.empty_dir_mounts
    assert pod.active_deadline_seconds == 86400
    assert compiled.tasks["rest-rl"].retry_policy.max_retry_count == 5
    surroundings = config.validate(Surroundings, compiled.surroundings(), where="surroundings")
    (asked,) = [one for one in surroundings.asked if one.count]
    assert (asked.count, asked.nodes, asked.node_selector) == (8, 2, {"pool": "a100"})
    launch = json_format.MessageToDict(compiled.spec.root.input_definitions.parameters["launch"].default_value)
    job = config.validate(config.LaunchConfig, launch, where="launch").train_job
    assert job is not None
    assert (job.nodes, job.resources) == (2, {"memory": "512Gi", "nvidia.com/gpu": "8"})
    assert job.image == job.environment[IMAGE_VARIABLE] == image("train")


def test_nodes_that_share_no_storage_are_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a training on 2 nodes: .* set storage\.location") as told:
        compile_for(tmp_path, {"stages": {"rest_rl": _NODES}})
    assert "\n" not in str(told.value)
    off = compile_for(tmp_path, {"stages": {"rest_rl": _NODES}}, config=config.load("tiny", ("rl.enabled=false",)))
    told = config.validate(Surroundings, off.surroundings(), where="surroundings")
    assert not any(one.count for one in told.asked) and not told.without_gpu


def test_outputs_on_a_pods_own_disk_are_refused(tmp_path: Path) -> None:
    profile = config.load("tiny", ("storage.location=/work/rest",))
    with pytest.raises(
        UserError, match=r"storage\.location=/work/rest: neither .*each pod would write to its own disk"
    ):
        compile_for(tmp_path, {}, config=profile)
    compile_for(tmp_path, {"volumes": {"work": {"claim": "work", "path": "/work"}}}, config=profile)


@pytest.mark.parametrize("pipeline", ["rest", "ablation"])
def test_a_stage_that_is_switched_off_takes_no_gpu(tmp_path: Path, pipeline: PipelineName) -> None:
    platform = copy.deepcopy(PLATFORM)
    gpu_stage = platform["stages"]["rest_rl"]
    platform["stages"] |= {"sft_warmup": gpu_stage, "evaluate_api_bank": gpu_stage}
    off = config.load("tiny", ("sft.enabled=false", "api_bank.enabled=false"))
    compiled = compile_for(tmp_path, platform, pipeline, off)
    assert compiled.gpus("rest-rl")[1] == "8"
    off_stages = ["sft-warmup", *(name for name in EVALUATIONS if "api-bank" in name), "evaluate-bfcl-warmup"]
    for task in set(off_stages) & set(compiled.pods):
        pod = compiled.pods[task]
        assert compiled.gpus(task) == ("", "") and GPUS_VARIABLE not in compiled.environment(task)
        assert compiled.containers[task].resources.resource_memory_limit == "8Gi"
        assert not pod.node_selector.labels and not pod.tolerations and not pod.empty_dir_mounts
        assert pod.active_deadline_seconds == (3600 if "bfcl" in task else 86400)
    told = compiled.surroundings()
    with_gpu = [one["stage"] for one in told["asked"] if one["count"]]
    assert with_gpu[0] == "rest-rl" and {"evaluate-bfcl-base", "evaluate-bfcl-trained"} <= set(with_gpu)
    assert not set(with_gpu) & set(off_stages)


def test_where_there_are_no_gpus_a_stage_that_is_off_may_be_switched_on_by_a_run(tmp_path: Path) -> None:
    platform = {"stages": {"default": {"memory": "8Gi"}, "sft_warmup": {"memory": "64Gi"}}}
    compiled = compile_for(tmp_path, platform, config=config.load("tiny", ("sft.enabled=false",)))
    assert compiled.containers["sft-warmup"].resources.resource_memory_limit == "64Gi"
    assert compiled.surroundings()["without_gpu"] == []


def test_preflight_and_the_stages_are_told_where_large_outputs_go(compiled: Compiled) -> None:
    storage = compiled.spec.root.input_definitions.parameters["storage"].default_value
    assert json_format.MessageToDict(storage) == {"location": "s3://bucket/runs"}
    for task in ("preflight", "prepare-data", "sft-warmup", "rest-rl"):
        assert compiled.tasks[task].inputs.parameters["storage"].component_input_parameter == "pipelinechannel--storage"


def test_node_selectors_tolerations_and_shared_memory_are_of_their_stage(compiled: Compiled) -> None:
    for task, pod in compiled.pods.items():
        if task != "rest-rl":
            assert not pod.node_selector.labels and not pod.tolerations and not pod.empty_dir_mounts
    pod = compiled.pods["rest-rl"]
    assert dict(pod.node_selector.labels) == {"pool": "a100"}
    first, second = pod.tolerations
    assert (first.key, first.operator, first.value, first.effect) == ("gpu", "Exists", "", "NoSchedule")
    assert not first.HasField("toleration_seconds")
    assert (second.key, second.operator, second.value, second.effect) == ("spot", "Equal", "yes", "NoExecute")
    assert second.toleration_seconds == 60
    (shm,) = pod.empty_dir_mounts
    assert (shm.mount_path, shm.medium, shm.size_limit) == ("/dev/shm", "Memory", "16Gi")


def test_volumes_are_mounted_where_they_are_used_and_hold_what_is_downloaded(compiled: Compiled) -> None:
    """A pod with a claim that is not bound is never scheduled: those that report on the run mount none."""
    loads = {"prepare-data", *GPU_STAGES}
    for task in compiled.pods:
        expected = {} if task in ("preflight", "report-status") else {"work": ("/work", "rest")}
        expected |= {"cache": ("/cache/", "")} if task in loads else {}
        assert compiled.mounts(task) == expected
        environment = compiled.environment(task)
        if task in loads:
            assert environment["HF_HOME"] == "/cache/huggingface"
            assert environment["XDG_CACHE_HOME"] == "/cache"
        else:
            assert "HF_HOME" not in environment


def test_the_exit_task_mounts_the_scratch_space_that_it_removes(tmp_path: Path) -> None:
    platform = {"volumes": {"work": {"claim": "work", "path": "/work"}}, "storage": {"location": "/work/rest"}}
    compiled = compile_for(tmp_path, platform)
    assert compiled.mounts("report-status") == {"work": ("/work", "")}
    assert compiled.mounts("preflight") == {}


def test_without_a_model_cache_downloads_go_to_the_work_volume(tmp_path: Path) -> None:
    compiled = compile_for(tmp_path, {"volumes": {"work": {"claim": "work", "path": "/work"}}})
    assert compiled.environment("rest-rl")["XDG_CACHE_HOME"] == "/work/.cache"
    assert "XDG_CACHE_HOME" not in compiled.environment("compare-and-register")


def test_secrets_are_given_by_name_to_those_who_need_them(compiled: Compiled) -> None:
    tracking = {
        "MLFLOW_TRACKING_URI": ("tracking", False),
        "MLFLOW_TRACKING_USERNAME": ("tracking", True),
        "MLFLOW_TRACKING_PASSWORD": ("tracking", True),
        "MLFLOW_TRACKING_TOKEN": ("tracking", True),
    }
    s3 = {
        "AWS_ACCESS_KEY_ID": ("s3-keys", False),
        "AWS_SECRET_ACCESS_KEY": ("s3-keys", False),
        "AWS_SESSION_TOKEN": ("s3-keys", True),
        "AWS_ENDPOINT_URL": ("s3-keys", True),
        "AWS_DEFAULT_REGION": ("s3-keys", True),
    }
    for task in {"compare-and-register", "aggregate"} & set(compiled.tasks):
        assert compiled.secrets(task) == tracking | s3
    for task in {"prepare-data", *GPU_STAGES} & set(compiled.tasks):
        assert compiled.secrets(task) == tracking | s3 | {"HF_TOKEN": ("hf", False)}
    # A pod whose required key is missing never starts; these two are to tell so.
    webhook = {"REST_WEBHOOK_URL", "REST_WEBHOOK_FORM", "REST_WEBHOOK_WHEN"}
    told = {*tracking, *s3, *webhook}
    for task, names in {"preflight": {*told, "HF_TOKEN"}, "report-status": told}.items():
        secrets = compiled.secrets(task)
        assert set(secrets) == names
        assert all(optional for _, optional in secrets.values())


def test_pods_are_labelled_restricted_and_know_their_run_without_an_input(compiled: Compiled) -> None:
    assert "{{$.pipeline_job_uuid}}" not in str(compiled.spec)
    for task, pod in compiled.pods.items():
        assert dict(pod.pod_metadata.labels) == {"team": "tools", PART_OF_LABEL: PROJECT, STAGE_LABEL: task}
        assert dict(pod.pod_metadata.annotations) == {"note": "of a run"}
        context = pod.security_context
        assert (context.run_as_user, context.run_as_group, context.run_as_non_root) == (1000, 2000, True)
        (field,) = pod.field_path_as_env
        assert (field.name, field.field_path) == (RUN_ID_VARIABLE, "metadata.labels['pipeline/runid']")


def test_timeouts_and_retries_with_back_off(compiled: Compiled) -> None:
    for task, pod in compiled.pods.items():
        assert pod.active_deadline_seconds == (86400 if task == "rest-rl" else 3600)
    for name, task in compiled.tasks.items():
        policy = task.retry_policy
        if name == "preflight":
            assert not task.HasField("retry_policy")
            continue
        given = (policy.max_retry_count, policy.backoff_duration.seconds, policy.backoff_factor)
        assert given == ((5, 60, 1.0) if name == "rest-rl" else (1, 30, 2.0))
        # Argo's window from the first try's start: all tries must fit, and what each waits for its node.
        tries = policy.max_retry_count + 1
        assert policy.backoff_max_duration.seconds >= tries * (compiled.pods[name].active_deadline_seconds + _DAY)


@pytest.mark.parametrize(
    ("stage", "seconds"),
    [
        ({"retries": {"count": 2, "window_seconds": 777}}, 777),
        ({"retries": {"count": 1, "backoff_seconds": 10}}, 2 * 31 * _DAY + 10),  # without a time-out
        ({"timeout_seconds": 100, "retries": {"count": 3, "backoff_seconds": 10}}, 4 * (_DAY + 100) + 10 + 20 + 40),
    ],
)
def test_the_window_of_retries(tmp_path: Path, stage: dict[str, Any], seconds: int) -> None:
    compiled = compile_for(tmp_path, {"stages": {"rest_rl": stage}})
    assert compiled.tasks["rest-rl"].retry_policy.backoff_max_duration.seconds == seconds


def test_an_empty_platform_asks_for_nothing(tmp_path: Path) -> None:
    compiled = compile_for(tmp_path, {})
    for task, pod in compiled.pods.items():
        assert not pod.secret_as_env and not pod.pvc_mount and not pod.HasField("node_selector")
        assert compiled.containers[task].image == image(CATALOGUE[task].image)
        assert pod.security_context.run_as_non_root and not pod.security_context.HasField("run_as_user")
    assert not any(container.HasField("resources") for container in compiled.containers.values())
    assert not any(task.HasField("retry_policy") for task in compiled.tasks.values())


def test_sizes_that_kfps_setters_do_not_take_arrive_in_bytes(tmp_path: Path) -> None:
    compiled = compile_for(tmp_path, {"stages": {"prepare_data": {"memory": "1.5Gi", "cpu": 0.5}}})
    resources = compiled.containers["prepare-data"].resources
    assert (resources.resource_memory_limit, resources.resource_cpu_limit) == ("1610612736", "0.5")


@pytest.mark.parametrize("name", ["rest", "ablation"])
def test_the_committed_files_are_what_a_cluster_reads(name: str) -> None:
    compiled = Compiled(TOP / "pipelines" / "compiled" / f"{name}_pipeline.yaml")
    assert set(compiled.tasks) == set(compiled.pods) == set(compiled.containers) == CLUSTER_TASKS[name]
    for task, of_task in compiled.tasks.items():
        policy, pod = of_task.retry_policy, compiled.pods[task]
        if policy.max_retry_count:
            tries = policy.max_retry_count + 1
            assert policy.backoff_max_duration.seconds >= tries * pod.active_deadline_seconds
            assert policy.backoff_factor.is_integer()
    assert compiled.gpus("rest-rl") == ("nvidia.com/gpu", "8")
    assert compiled.gpus("sft-warmup") == ("", "")  # off in the profile
