"""The pipeline's graph and YAML, the components' common code, and what surrounds a local run."""

from __future__ import annotations

import inspect
import json
import re
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from google.protobuf import json_format, struct_pb2
from kfp import dsl
from kfp.kubernetes.kubernetes_executor_config_pb2 import KubernetesExecutorConfig
from kfp.pipeline_spec import pipeline_spec_pb2
from rich.console import Console

from components.compare_and_register.component import compare_and_register
from components.evaluate_api_bank.component import evaluate_api_bank
from components.evaluate_bfcl.component import evaluate_bfcl
from components.images import image
from components.preflight.component import preflight
from components.prepare_data.component import prepare_data
from components.report_status.component import report_status
from components.rest_rl.component import rest_rl
from components.runtime import run_stage
from components.sft_warmup.component import sft_warmup
from pipelines.local import StageFailed, run_local
from pipelines.monitor import Monitor, StageRun
from pipelines.placement import surroundings
from pipelines.platform import GPU_STAGES, IMAGE_OF, Platform
from pipelines.rest_pipeline import PARAMETERS, STAGES, build, compile_to
from pipelines.summary import StageSummary, Summary, duration, figures, reward_line, show
from rest_core import config, manifest, stages
from rest_core.config import Config
from rest_core.errors import EXIT_PREEMPTED, Preempted, UserError
from rest_core.pods import GPUS_VARIABLE, PART_OF_LABEL, PROJECT, RUN_ID_VARIABLE, STAGE_LABEL
from rest_core.preflight.surroundings import Surroundings
from rest_core.stages import StageResult

TOP = Path(__file__).resolve().parents[2]
COMPONENTS = (prepare_data, sft_warmup, rest_rl, evaluate_bfcl, evaluate_api_bank, compare_and_register)


PLATFORM = {
    "images": {
        "base": "registry.example/rest-base@sha256:00",
        "evaluate": "registry.example/rest-evaluate@sha256:22",
        "pull_policy": "Always",
        "pull_secrets": ["registry"],
    },
    "kfp_url": "https://kfp.example/pipeline",
    "labels": {"team": "tools", "app.kubernetes.io/component": "mine"},
    "annotations": {"note": "of a run"},
    "security_context": {"run_as_user": 1000, "run_as_group": 2000},
    "secrets": {"s3": "s3-keys", "hugging_face": "hf", "mlflow": "tracking"},
    "volumes": {
        "model_cache": {"claim": "cache", "path": "/cache/"},
        "work": {"claim": "work", "path": "/work", "sub_path": "rest"},
    },
    "storage": {"location": "s3://bucket/runs"},
    "stages": {
        "default": {
            "cpu": "2",
            "memory": "8Gi",
            "timeout_seconds": 3600,
            "retries": {"count": 1, "backoff_seconds": 30},
            "gpu": {"count": 1},
        },
        "preflight": {"retries": {"count": 0}},
        "rest_rl": {
            "cpu": "16",
            "memory": "64Gi",
            "gpu": {"resource": "amd.com/gpu", "count": 8},
            "shm_size": "16Gi",
            "node_selector": {"pool": "a100"},
            "tolerations": [
                {"key": "gpu", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "spot", "value": "yes", "effect": "NoExecute", "toleration_seconds": 60},
            ],
            "timeout_seconds": 86400,
            "retries": {"count": 5, "backoff_seconds": 60, "backoff_factor": 1.5, "backoff_max_seconds": 600},
        },
    },
}
CLUSTER_TASKS = {"preflight", *STAGES}


class Compiled:
    """A compiled pipeline as a cluster reads it: both specs parsed into their protobufs."""

    def __init__(self, path: Path, config: Config, platform: Platform) -> None:
        compile_to(path, build(config, platform=platform))
        pipeline, kubernetes = yaml.safe_load_all(path.read_text(encoding="utf-8"))
        self.spec = json_format.ParseDict(pipeline, pipeline_spec_pb2.PipelineSpec())
        json_format.ParseDict(kubernetes, pipeline_spec_pb2.PlatformSpec())
        executors = kubernetes["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        # Unknown fields are refused: what this finds is what the backend reads.
        self.pods = {
            label.removeprefix("exec-"): json_format.ParseDict(executor, KubernetesExecutorConfig())
            for label, executor in executors.items()
        }
        self.containers = {
            label.removeprefix("exec-"): json_format.ParseDict(
                executor["container"], pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec()
            )
            for label, executor in pipeline["deploymentSpec"]["executors"].items()
        }

    @property
    def handled(self) -> Any:
        """The tasks that the exit handler surrounds, by name."""
        (handler,) = [task for name, task in self.spec.root.dag.tasks.items() if name != "report-status"]
        return self.spec.components[handler.component_ref.name].dag.tasks

    def tasks(self) -> dict[str, Any]:
        return {**self.handled, "report-status": self.spec.root.dag.tasks["report-status"]}

    def environment(self, task: str) -> dict[str, str]:
        return {variable.name: variable.value for variable in self.containers[task].env}

    def secrets(self, task: str) -> dict[str, tuple[str, bool]]:
        """The Secret that each environment variable comes from, and whether the pod starts without it."""
        return {
            entry.env_var: (secret.secret_name_parameter.runtime_value.constant.string_value, secret.optional)
            for secret in self.pods[task].secret_as_env
            for entry in secret.key_to_env
        }


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    path = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    return Compiled(path, config.load("tiny"), Platform.model_validate(PLATFORM))


def test_preflight_comes_first_and_evaluations_run_side_by_side(compiled: Compiled) -> None:
    assert set(compiled.spec.root.input_definitions.parameters) == {*PARAMETERS, "pipeline_run"}
    before = {name: set(task.dependent_tasks) for name, task in compiled.handled.items()}
    assert before == {
        "preflight": set(),
        "prepare-data": {"preflight"},
        "sft-warmup": {"prepare-data"},
        "rest-rl": {"prepare-data", "sft-warmup"},
        "evaluate-bfcl": {"rest-rl"},
        "evaluate-api-bank": {"rest-rl"},
        "compare-and-register": {"prepare-data", "rest-rl", "evaluate-bfcl", "evaluate-api-bank"},
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
    told = compiled.handled["preflight"].inputs.parameters["surroundings"].runtime_value.constant.struct_value
    surroundings = config.validate(Surroundings, json_format.MessageToDict(told), where="surroundings")
    assert {secret.name: secret.variables for secret in surroundings.secrets} == {
        "s3-keys": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
        "hf": ("HF_TOKEN",),
        "tracking": ("MLFLOW_TRACKING_URI",),
    }
    assert [(mount.claim, mount.path) for mount in surroundings.mounts] == [("cache", "/cache/"), ("work", "/work")]
    asked = {gpus.stage: gpus for gpus in surroundings.gpus}
    assert set(asked) == set(GPU_STAGES)
    assert (asked["rest-rl"].resource, asked["rest-rl"].count, asked["rest-rl"].nodes) == ("amd.com/gpu", 8, 1)
    assert asked["rest-rl"].node_selector == {"pool": "a100"}
    assert [one.key for one in asked["rest-rl"].tolerations] == ["gpu", "spot"]


def test_caching_is_on_for_data_and_evaluation_only(compiled: Compiled) -> None:
    cached = {name for name, task in compiled.tasks().items() if task.caching_options.enable_cache}
    assert cached == {"prepare-data", "evaluate-bfcl", "evaluate-api-bank"}


def test_each_task_has_the_image_of_its_target_and_installs_nothing(compiled: Compiled) -> None:
    images = PLATFORM["images"]
    assert set(compiled.containers) == {*CLUSTER_TASKS, "report-status"}
    for task, container in compiled.containers.items():
        assert container.image == images.get(IMAGE_OF[task], image("train"))
        assert "pip install" not in " ".join(container.command)
        pod = compiled.pods[task]
        assert pod.image_pull_policy == "Always"
        assert [
            secret.secret_name_parameter.runtime_value.constant.string_value for secret in pod.image_pull_secret
        ] == ["registry"]


@pytest.mark.parametrize("component", [*COMPONENTS, preflight, report_status], ids=lambda component: component.name)
def test_components_name_the_image_that_the_platform_gives_them(component: Any) -> None:
    """A local run in containers has no platform.yaml."""
    container = component.component_spec.implementation.container
    assert container.image == image(IMAGE_OF[component.name])


def test_resources_are_requested_and_bounded_and_gpus_go_to_gpu_stages_alone(compiled: Compiled) -> None:
    for task, container in compiled.containers.items():
        resources = container.resources
        cpu, memory = ("16", "64Gi") if task == "rest-rl" else ("2", "8Gi")
        assert (resources.resource_cpu_request, resources.resource_cpu_limit) == (cpu, cpu)
        assert (resources.resource_memory_request, resources.resource_memory_limit) == (memory, memory)
        accelerator = (resources.accelerator.resource_type, resources.accelerator.resource_count)
        expected = {"rest-rl": ("amd.com/gpu", "8")}.get(
            task, ("nvidia.com/gpu", "1") if task in GPU_STAGES else ("", "")
        )
        assert accelerator == expected
        assert compiled.environment(task).get(GPUS_VARIABLE, "") == expected[1]


def test_a_training_on_several_nodes_asks_for_them_in_its_train_job_alone(tmp_path: Path) -> None:
    stage = {"gpu": {"count": 8}, "nodes": 2, "memory": "512Gi", "shm_size": "64Gi", "node_selector": {"pool": "a100"}}
    lasting = {"timeout_seconds": 86400, "retries": {"count": 5}}
    platform = Platform.model_validate({"stages": {"default": {"memory": "8Gi"}, "rest_rl": {**stage, **lasting}}})
    compiled = Compiled(tmp_path / "pipeline.yaml", config.load("tiny"), platform)
    resources = compiled.containers["rest-rl"].resources
    assert not resources.HasField("accelerator") and resources.resource_memory_limit == "8Gi"
    pod = compiled.pods["rest-rl"]
    assert not pod.node_selector.labels and not pod.empty_dir_mounts
    assert pod.active_deadline_seconds == 86400
    assert compiled.handled["rest-rl"].retry_policy.max_retry_count == 5
    (asked,) = surroundings(platform).gpus
    assert (asked.count, asked.nodes, asked.node_selector) == (8, 2, {"pool": "a100"})
    launch = json_format.MessageToDict(compiled.spec.root.input_definitions.parameters["launch"].default_value)
    job = config.validate(config.LaunchConfig, launch, where="launch").train_job
    assert job is not None
    assert (job.nodes, job.resources) == (2, {"memory": "512Gi", "nvidia.com/gpu": "8"})


def test_preflight_and_the_stages_are_told_where_large_outputs_go(compiled: Compiled) -> None:
    storage = compiled.spec.root.input_definitions.parameters["storage"].default_value
    assert json_format.MessageToDict(storage) == {"location": "s3://bucket/runs"}
    for task in ("preflight", "prepare-data", "sft-warmup", "rest-rl"):
        assert (
            compiled.handled[task].inputs.parameters["storage"].component_input_parameter == "pipelinechannel--storage"
        )


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
    loads = {"preflight", "prepare-data", *GPU_STAGES}
    for task, pod in compiled.pods.items():
        mounts = {
            mount.pvc_name_parameter.runtime_value.constant.string_value: (mount.mount_path, mount.sub_path)
            for mount in pod.pvc_mount
        }
        expected = {"work": ("/work", "rest")} | ({"cache": ("/cache/", "")} if task in loads else {})
        assert mounts == expected
        environment = compiled.environment(task)
        if task in loads:
            assert environment["HF_HOME"] == "/cache/huggingface"
            assert environment["XDG_CACHE_HOME"] == "/cache"
        else:
            assert "HF_HOME" not in environment


def test_without_a_model_cache_downloads_go_to_the_work_volume(tmp_path: Path) -> None:
    platform = Platform.model_validate({"volumes": {"work": {"claim": "work", "path": "/work"}}})
    compiled = Compiled(tmp_path / "pipeline.yaml", config.load("tiny"), platform)
    assert compiled.environment("rest-rl")["XDG_CACHE_HOME"] == "/work/.cache"
    assert "XDG_CACHE_HOME" not in compiled.environment("report-status")


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
        "AWS_ENDPOINT_URL": ("s3-keys", True),
        "AWS_DEFAULT_REGION": ("s3-keys", True),
    }
    for task in ("compare-and-register", "report-status"):
        assert compiled.secrets(task) == tracking | s3
    for task in ("prepare-data", *GPU_STAGES):
        assert compiled.secrets(task) == tracking | s3 | {"HF_TOKEN": ("hf", False)}
    # A pod whose required key is missing never starts; preflight's is to tell so.
    names = compiled.secrets("preflight")
    assert set(names) == {*tracking, *s3, "HF_TOKEN"}
    assert all(optional for _, optional in names.values())


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
    for name, task in compiled.tasks().items():
        policy = task.retry_policy
        given = (
            policy.max_retry_count,
            policy.backoff_duration.seconds,
            policy.backoff_factor,
            policy.backoff_max_duration.seconds,
        )
        if name == "preflight":
            assert not task.HasField("retry_policy")
        else:
            assert given == ((5, 60, 1.5, 600) if name == "rest-rl" else (1, 30, 2.0, 3600))


def test_an_empty_platform_asks_for_nothing(tmp_path: Path) -> None:
    compiled = Compiled(tmp_path / "pipeline.yaml", config.load("tiny"), Platform())
    for task, pod in compiled.pods.items():
        assert not pod.secret_as_env and not pod.pvc_mount and not pod.HasField("node_selector")
        assert compiled.containers[task].image == image(IMAGE_OF[task])
        assert pod.security_context.run_as_non_root and not pod.security_context.HasField("run_as_user")
    assert not any(container.HasField("resources") for container in compiled.containers.values())
    assert not any(task.HasField("retry_policy") for task in compiled.tasks().values())


def test_a_local_run_is_the_stages_alone() -> None:
    spec = build(config.load("tiny")).pipeline_spec
    assert set(spec.root.dag.tasks) == set(STAGES)
    assert not any(task.HasField("retry_policy") for task in spec.root.dag.tasks.values())
    cached = {name for name, task in spec.root.dag.tasks.items() if task.caching_options.enable_cache}
    assert cached == {"prepare-data", "evaluate-bfcl", "evaluate-api-bank"}


@pytest.mark.parametrize("variable", ["COMPILE", "COMPILE_ABLATION"])
def test_the_committed_yaml_is_what_make_compile_writes(variable: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from rest_core.cli import cli

    makefile = (TOP / "Makefile").read_text(encoding="utf-8")
    line = re.search(rf"^{variable} := (.*) --output (\S+)$", makefile, re.MULTILINE)
    assert line is not None
    result = CliRunner().invoke(cli, [*line[1].split(), "--output", str(tmp_path / "new.yaml")])
    assert result.exit_code == 0, result.output
    new, committed = (
        list(yaml.safe_load_all(path.read_text(encoding="utf-8"))) for path in (tmp_path / "new.yaml", TOP / line[2])
    )
    assert new == committed, "stale: run `make compile`"


def test_a_platform_that_does_not_fit_is_told_before_anything_is_written(tmp_path: Path) -> None:
    from click.testing import CliRunner

    from rest_core.cli import cli

    (tmp_path / "platform.yaml").write_text("stages: {rest_rl: {cpu: eight}}", encoding="utf-8")
    files = ("--platform", str(tmp_path / "platform.yaml"), "--output", str(tmp_path / "rest.yaml"))
    result = CliRunner().invoke(cli, ["compile", "--profile", "tiny", *files])
    assert isinstance(result.exception, UserError)
    assert "stages.rest_rl.cpu" in str(result.exception)
    assert not (tmp_path / "rest.yaml").exists()


def test_yaml_goes_into_a_yaml_file_that_can_be_written(tmp_path: Path) -> None:
    pipeline = build(config.load("tiny"))
    with pytest.raises(UserError, match=r"\.yaml"):
        compile_to(tmp_path / "pipeline.json", pipeline)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        compile_to(tmp_path / "file" / "pipeline.yaml", pipeline)


@pytest.mark.parametrize("profile", config.profiles())
def test_sections_survive_the_way_through_kfp(profile: str) -> None:
    """KFP's parameters are protobuf structs: every number a double, and no null from the SDK."""
    for name in PARAMETERS:
        section = getattr(config.load(profile), name)
        struct = struct_pb2.Struct()
        struct.update(section.to_parameter())
        assert config.validate(type(section), json_format.MessageToDict(struct), where=name) == section


def test_an_explicit_null_is_no_default() -> None:
    section = config.load("tiny", ("rl.loss.dual_clip=null",)).rl
    assert section.loss.dual_clip is None
    assert config.validate(config.RlConfig, section.to_parameter(), where="rl").loss.dual_clip is None


@pytest.mark.parametrize("component", [*COMPONENTS, preflight, report_status], ids=lambda component: component.name)
def test_a_component_is_a_thin_wrapper_of_its_stage(component: Any) -> None:
    source = Path(inspect.getfile(component.python_func)).read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 40
    stage = getattr(stages, component.python_func.__name__)
    outputs = set(component.component_spec.outputs)
    wanted = set(inspect.signature(stage).parameters) - {"out"}
    assert set(component.component_spec.inputs) == wanted
    assert len(outputs - {"metrics", "page"}) == 1


def _artifacts(folder: Path) -> tuple[dsl.Artifact, dsl.Metrics]:
    return dsl.Artifact(uri=str(folder / "out")), dsl.Metrics(uri=str(folder / "metrics"))


def _stage(metrics: dict[str, float], seen: dict[str, Any]) -> Any:
    def stage(*, out: Path, **arguments: Any) -> StageResult:
        seen.update(arguments)
        out.mkdir()
        manifest.write(out, stage="test", config={}, inputs={}, counts={})
        return StageResult(metrics)

    return stage


def test_run_stage_maps_sections_folders_and_figures(tmp_path: Path) -> None:
    out, metrics = _artifacts(tmp_path)
    seen: dict[str, Any] = {}
    given = config.load("tiny").rl
    run_stage(
        _stage({"reward": 1.5, "broken": float("nan")}, seen),
        sections={"rl": given.to_parameter()},
        pipeline_run="my run",
        folders={"dataset": dsl.Dataset(uri=str(tmp_path / "data"))},
        out=out,
        metrics=metrics,
    )
    assert seen == {"rl": given, "dataset": tmp_path / "data", "pipeline_run": "my run"}
    assert metrics.metadata["reward"] == 1.5
    assert "broken" not in metrics.metadata  # a NaN would make the executor's output unreadable
    assert metrics.metadata["stage/peak_rss_mib"] > 10
    assert json.loads(Path(metrics.path).read_text(encoding="utf-8")) == metrics.metadata
    assert out.metadata["sha256"] == manifest.read(tmp_path / "out")["sha256"]


def test_run_stage_takes_the_run_from_the_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, metrics = _artifacts(tmp_path)
    monkeypatch.delenv(RUN_ID_VARIABLE, raising=False)
    with pytest.raises(UserError, match="pipeline_run is empty"):
        run_stage(_stage({}, {}), sections={}, pipeline_run="", out=out, metrics=metrics)
    monkeypatch.setenv(RUN_ID_VARIABLE, "0f3c")
    seen: dict[str, Any] = {}
    run_stage(_stage({}, seen), sections={}, pipeline_run="", out=out, metrics=metrics)
    assert seen["pipeline_run"] == "0f3c"


def test_a_pod_does_not_track_on_its_own_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and the registered model would be lost with the pod."""
    monkeypatch.setenv(RUN_ID_VARIABLE, "0f3c")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(**tracking: str) -> dict[str, Any]:
        out, metrics = _artifacts(Path(tempfile.mkdtemp(dir=tmp_path)))
        seen: dict[str, Any] = {}
        run_stage(_stage({}, seen), sections={"tracking": tracking}, pipeline_run="", out=out, metrics=metrics)
        return seen

    with pytest.raises(UserError, match=r"this pod's own disk: set tracking\.uri"):
        run()
    assert run(uri="http://mlflow:5000")["tracking"].uri == "http://mlflow:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://db/mlflow")
    run()


def test_run_stage_refuses_a_wrong_section_and_logs_the_cost_all_the_same(tmp_path: Path) -> None:
    out, metrics = _artifacts(tmp_path)
    with pytest.raises(UserError, match=r"rl: unknown key 'stepz'; did you mean 'steps'\?"):
        run_stage(_stage({}, {}), sections={"rl": {"stepz": 1}}, pipeline_run="x", out=out, metrics=metrics)
    assert "stage/seconds" in json.loads(Path(metrics.path).read_text(encoding="utf-8"))


def test_run_stage_ends_with_the_code_that_means_again(tmp_path: Path) -> None:
    def stopped(**_: Any) -> StageResult:
        raise Preempted("SIGTERM: left after step 3 of 9")

    out, metrics = _artifacts(tmp_path)
    with pytest.raises(SystemExit) as stop:
        run_stage(stopped, sections={}, pipeline_run="x", out=out, metrics=metrics)
    assert stop.value.code == EXIT_PREEMPTED == 75
    assert "stage/seconds" in json.loads(Path(metrics.path).read_text(encoding="utf-8"))


def test_the_monitor_tells_each_start_and_end_once_and_times_add_up(tmp_path: Path) -> None:
    events: list[str] = []
    ballast = b""
    with Monitor(
        tmp_path,
        on_start=lambda stage, number: events.append(f"start {number} {stage.name}"),
        on_done=lambda stage: events.append(f"done {stage.name}"),
    ) as monitor:
        began = time.monotonic()
        for name in ("one", "two"):
            task = tmp_path / "pipeline-2026" / name
            task.mkdir(parents=True)
            ballast = bytes(64 * 2**20)
            time.sleep(0.6)
            if name == "one":
                (task / "executor_output.json").touch()
                time.sleep(0.6)
        elapsed = time.monotonic() - began
    assert events == ["start 1 one", "done one", "start 2 two"]
    one, two = monitor.stages["one"], monitor.stages["two"]
    assert (one.done, two.done) == (True, False)
    assert one.seconds + two.seconds == pytest.approx(elapsed, abs=0.5)
    assert 64 < two.peak_rss_mib <= monitor.peak_rss_mib
    assert ballast


def test_a_last_event_is_not_missed(tmp_path: Path) -> None:
    with Monitor(tmp_path) as monitor:
        task = tmp_path / "pipeline-2026" / "one"
        task.mkdir(parents=True)
        (task / "executor_output.json").touch()
    assert monitor.stages["one"].done


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="already holds something"):
        run_local(config.load("tiny"), folder=tmp_path, console=Console())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_kfp_local_would_rewrite_python3_in_paths(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="python3"):
        run_local(config.load("tiny"), folder=tmp_path / "python3-runs", console=Console())
    with pytest.raises(UserError, match="python3"):
        run_local(config.load("tiny", ("model.source=/models/python3",)), folder=tmp_path / "run", console=Console())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_told_in_the_words_of_its_stage(tmp_path: Path) -> None:
    from pipelines.local import LOG_FILE, explain

    failed = StageRun("prepare-data", tmp_path / "prepare-data")
    (failed.folder / "dataset").mkdir(parents=True)
    (tmp_path / LOG_FILE).write_text("\n".join(f"line {n}" for n in range(100)), encoding="utf-8")
    monitor: Any = SimpleNamespace(stages={"prepare-data": failed})
    with pytest.raises(StageFailed) as defect:
        explain(tmp_path, monitor, RuntimeError("kfp"))
    assert "line 99" in str(defect.value)
    assert "line 80\n" not in str(defect.value)
    (failed.folder / "dataset" / "error.json").write_text(json.dumps({"message": "x.json, line 3: not JSON"}))
    with pytest.raises(UserError, match=r"^prepare-data: x\.json, line 3: not JSON$"):
        explain(tmp_path, monitor, RuntimeError("kfp"))
    stopped = {"message": "SIGTERM: left after step 3 of 9", "exit_code": EXIT_PREEMPTED}
    (failed.folder / "dataset" / "error.json").write_text(json.dumps(stopped))
    with pytest.raises(Preempted, match=r"^prepare-data: SIGTERM: left after step 3 of 9$") as preempted:
        explain(tmp_path, monitor, RuntimeError("kfp"))
    assert preempted.value.exit_code == 75


def _summary(*stage: StageSummary, **values: Any) -> Summary:
    given = {one.name: one for one in stage}
    every = tuple(given.get(name, StageSummary(name, "not run")) for name in STAGES)
    settings: dict[str, Any] = {
        "run": "r",
        "profile": "p",
        "status": "succeeded",
        "seconds": 61.0,
        "peak_rss_mib": 2048.0,
        "folder": "/runs/r",
        "mlflow": "make ui, then http://127.0.0.1:5000/#/experiments/1/runs/0123456789abcdef",
        "unsent": 0,
    }
    return Summary(stages=every, **(settings | values))


@pytest.mark.parametrize(
    ("before", "after", "verdict"), [(-1.0, -0.5, "above"), (0.5, 0.5, "NOT above"), (0.5, 0.0, "NOT above")]
)
def test_the_reward_line_says_whether_it_rose(before: float, after: float, verdict: str) -> None:
    trained = StageSummary("rest-rl", "done", metrics={"reward/before": before, "reward/after": after})
    line = reward_line(_summary(trained))
    assert f"{before:+.3f} before, {after:+.3f} after" in line
    assert (f"]{verdict}[/]") in line


def test_without_a_probe_the_reward_line_claims_nothing() -> None:
    assert "not measured" in reward_line(_summary(StageSummary("rest-rl", "done", metrics={"rl/steps": 2.0})))


def test_the_summary_is_loud_about_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = StageSummary("evaluate-api-bank", "skipped", note="no network and no [path]")
    off = StageSummary("sft-warmup", "off", note="switched off (sft.enabled=false)")
    show(_summary(skipped, off, unsent=7), Console(width=80))
    out = capsys.readouterr().out
    assert "SKIPPED evaluate-api-bank: no network and no [path]" in out
    assert "MLflow has not got 7 records: rest sync /runs/r" in out
    assert "SKIPPED sft-warmup" not in out
    assert "1 min 01 s, at most 2.0 GiB" in out


def test_figures_of_a_stage_without_its_usual_ones() -> None:
    metrics = {"bfcl/simple_python": 0.25, "stage/seconds": 3.0}
    assert figures(StageSummary("evaluate-bfcl", "done", metrics=metrics)) == "bfcl/simple_python 0.25"
    assert figures(StageSummary("evaluate-bfcl", "done", metrics={"bfcl/overall": 0.5})) == "overall 50.0%"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (725, "12 min 05 s")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_config_parameters_are_all_sections() -> None:
    assert set(PARAMETERS) == set(Config.model_fields) - {"profile"}
