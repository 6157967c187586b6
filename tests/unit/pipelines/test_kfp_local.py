"""Each limit of kfp.local that `pipelines.local_limits` knows: found in the compiled pipeline, and real.

The second half of a test runs the pipeline and sees it go wrong. Where that fails, kfp has mended the limit: take its
check out of `pipelines/local_limits.py`.
"""

# ruff: noqa: PTH123  (the source of a component stands alone)
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, List, NamedTuple  # noqa: UP035  (KFP knows lists by this name)

import pytest
from google.protobuf import json_format
from kfp import dsl, kubernetes, local

from pipelines.local_limits import Effect, Finding, check

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")

component = dsl.component(base_image="python:3.11", install_kfp_package=False)


@component
def say(text: str) -> str:
    return text


@component
def note(text: str, file: str) -> str:
    """Appends a line to a file, by which a test sees what was run."""
    with open(file, "a") as stream:
        stream.write(text + "\n")
    return text


@component
def lists() -> NamedTuple("Lists", [("first", List[str])]):  # noqa: UP006
    return (["a"],)  # type: ignore[return-value]


@component
def make(text: str, made: dsl.Output[dsl.Artifact]) -> None:
    with open(made.path, "w") as stream:
        stream.write(text)


@component
def read(made: dsl.Input[dsl.Artifact], file: str) -> None:
    with open(made.path) as source, open(file, "a") as stream:
        stream.write(source.read() + "\n")


@component
def read_aloud(made: dsl.Input[dsl.Artifact]) -> str:
    with open(made.path) as source:
        return source.read()


@component
def measure(file: str, metrics: dsl.Output[dsl.Metrics]) -> None:
    with open(file, "a") as stream:
        stream.write("measured\n")
    metrics.log_metric("x", 1.0)


@component
def measure_and_write(file: str, metrics: dsl.Output[dsl.Metrics]) -> None:
    with open(file, "a") as stream:
        stream.write("measured\n")
    metrics.log_metric("x", 1.0)
    with open(metrics.path, "w") as stream:
        stream.write("{}")


@dsl.container_component
def in_a_container():  # type: ignore[no-untyped-def]
    return dsl.ContainerSpec(image="alpine", command=["echo"])


Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a pipeline with kfp.local; returns the lines that its tasks have noted."""
    file = tmp_path / "noted.txt"

    def go(pipeline: Any, **settings: Any) -> list[str]:
        root = tmp_path / "root"
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), **settings)
        pipeline(**({"file": str(file)} if pipeline.component_spec.inputs else {}))
        return file.read_text().splitlines() if file.exists() else []

    return go


def found(pipeline: Any) -> list[Finding]:
    return check(pipeline.pipeline_spec, json_format.MessageToDict(pipeline.platform_spec))


def only(pipeline: Any) -> tuple[str, Effect]:
    """Task and effect of the one finding."""
    (finding,) = found(pipeline)
    return finding.task, finding.effect


def test_an_upstream_parameter_inside_a_loop(run: Run) -> None:
    @dsl.pipeline
    def pipeline(file: str) -> None:
        said = say(text="upstream")
        with dsl.ParallelFor(["item"]):
            note(text=said.output, file=file)

    assert only(pipeline) == ("for-loop-2", "wrong")
    assert run(pipeline) == ["item"]  # a cluster: upstream


def test_an_outer_loops_item_inside_an_inner_loop(run: Run) -> None:
    @dsl.pipeline
    def pipeline(file: str, outer: List[str] = ["outer"]) -> None:  # noqa: B006, UP006
        with dsl.ParallelFor(outer) as item, dsl.ParallelFor(["inner"]):
            note(text=item, file=file)

    task, effect = only(pipeline)
    assert (task.count("for-loop"), effect) == (2, "wrong")
    assert run(pipeline) == ["inner"]  # a cluster: outer


def test_a_loop_over_one_of_several_outputs(run: Run) -> None:
    @dsl.pipeline
    def pipeline(file: str) -> None:
        with dsl.ParallelFor(lists().outputs["first"]) as item:
            note(text=item, file=file)

    assert only(pipeline)[1] == "fails"
    with pytest.raises(ValueError, match="not found"):
        run(pipeline)


def test_one_of_several_artifacts(run: Run) -> None:
    @dsl.pipeline
    def pipeline(file: str) -> None:
        said = say(text="a")
        with dsl.If(said.output == "a"):
            first = make(text="first")
        with dsl.Else():
            second = make(text="second")
        read(made=dsl.OneOf(first.outputs["made"], second.outputs["made"]), file=file)

    effects = {(finding.construct.split(" ")[0], finding.effect) for finding in found(pipeline)}
    assert ("dsl.OneOf", "fails") in effects
    with pytest.raises(ValueError, match="Expected 1 artifact"):
        run(pipeline)


def test_a_nested_pipeline_of_artifacts_alone(run: Run) -> None:
    @dsl.pipeline
    def inner(made: dsl.Input[dsl.Artifact]) -> str:
        return read_aloud(made=made).output

    @dsl.pipeline
    def pipeline(file: str) -> None:
        made = make(text="a")
        note(text=inner(made=made.outputs["made"]).output, file=file)

    assert only(pipeline) == ("inner", "fails")
    with pytest.raises(ValueError, match="not found"):
        run(pipeline)


def test_a_condition_on_a_text_with_a_quote(run: Run) -> None:
    @dsl.pipeline
    def pipeline(file: str) -> None:
        said = say(text="it's")
        with dsl.If(said.output != "nothing"):
            note(text="taken", file=file)

    assert only(pipeline) == ("condition-1", "wrong")
    assert run(pipeline) == []  # a cluster: taken


@pytest.mark.parametrize(
    "placeholder",
    [
        dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER,
        dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER,
        dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER,
    ],
)
def test_placeholders_of_the_job(run: Run, placeholder: str) -> None:
    @dsl.pipeline
    def pipeline(file: str) -> None:
        note(text=placeholder, file=file)

    assert only(pipeline) == ("note", "fails")
    with pytest.raises(IndexError):
        run(pipeline)


def test_metrics_without_a_file_are_never_cached(run: Run) -> None:
    @dsl.pipeline
    def without(file: str) -> None:
        measure(file=file)

    @dsl.pipeline
    def with_file(file: str) -> None:
        measure_and_write(file=file)

    assert only(without) == ("measure", "ignored")
    assert found(with_file) == []
    run(without, enable_caching=True)
    assert len(run(without, enable_caching=True)) == 2
    run(with_file, enable_caching=True)
    assert len(run(with_file, enable_caching=True)) == 3


def test_a_workspace_of_ones_own(run: Run, tmp_path: Path) -> None:
    @dsl.pipeline(pipeline_config=dsl.PipelineConfig(workspace=dsl.WorkspaceConfig(size="1Gi")))
    def pipeline(file: str) -> None:
        note(text=dsl.WORKSPACE_PATH_PLACEHOLDER, file=file)

    assert ("note", "wrong") in {(finding.task, finding.effect) for finding in found(pipeline)}
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kept").touch()
    run(pipeline, workspace_root=str(mine))
    assert not mine.exists()


def test_the_interpreters_name_in_an_argument(run: Run) -> None:
    @dsl.pipeline
    def pipeline(file: str, default: str = "python3 too") -> None:
        note(text="python3", file=file)
        note(text=default, file=file)

    wrong = [finding for finding in found(pipeline) if "python3" in finding.construct]
    assert {(finding.task, finding.effect) for finding in wrong} == {("", "wrong"), ("note", "wrong")}
    assert sorted(run(pipeline)) == [sys.executable, f"{sys.executable} too"]


def test_settings_of_kubernetes(run: Run) -> None:
    @dsl.pipeline
    def pipeline(file: str) -> None:
        task = note(text="run", file=file)
        kubernetes.use_secret_as_env(task, secret_name="absent", secret_key_to_env={"key": "VARIABLE"})
        task.set_memory_limit("64G")

    assert {(finding.task, finding.effect) for finding in found(pipeline)} == {("note", "ignored")}
    assert len(found(pipeline)) == 2
    assert run(pipeline) == ["run"]  # a cluster: the pod does not start


def test_a_container_component(run: Run) -> None:
    @dsl.pipeline
    def pipeline() -> None:
        in_a_container()

    assert only(pipeline) == ("in-a-container", "fails")
    with pytest.raises(RuntimeError, match="only supports running Lightweight Python Components"):
        run(pipeline)
