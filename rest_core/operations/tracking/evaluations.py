"""Evaluations that MLflow has, by run or by model version: the files that a comparison reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from rest_core.errors import UserError
from rest_core.evaluation.evaluation_report import REPORT_FILE, ROWS_FILE
from rest_core.operations.tracking import registry, store
from rest_core.operations.tracking.tags import PIPELINE_RUN_TAG, STAGE_TAG, TRIAL_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_RUN = re.compile(r"[0-9a-f]{32}")
_VERSION = re.compile(r"(?:models:/(?P<model>[^/@]+)[/@]|(?P<name>[^/@]+)@)(?P<version>[^/@]+)")  # a number or an alias


@dataclass(frozen=True)
class Found:
    """An evaluation in MLflow."""

    name: str  # for people: "rest-tool-use version 3"
    run: Run
    directory: str = ""  # of its files among the run's artifacts


def is_reference(text: str) -> bool:
    """Whether a text is the id of a run, or names a version of a registered model."""
    return _RUN.fullmatch(text) is not None or _VERSION.fullmatch(text) is not None


def find(client: MlflowClient, text: str, benchmark: str) -> Found:
    """The evaluation on a benchmark that a run id, `models:/NAME/VERSION` or `NAME@ALIAS` stands for.

    The run of a pipeline stands for the evaluation of the policy that it trained; likewise the run of a trial. An
    ablation trains several policies: its run stands for none.

    Args:
        client: from `store.connect`.
        text: `is_reference`.
        benchmark: "bfcl" or "api_bank"; an evaluation's own run is taken whatever it is.

    Raises:
        UserError: there is no such run or version, or not exactly one policy of it with a finished evaluation.
    """
    if _RUN.fullmatch(text):
        run = _run(client, text)
        if run.data.tags.get(STAGE_TAG, "").startswith("evaluate-"):
            return Found(f"{run.info.run_name} {text[:8]}", run)
        return Found(f"{run.info.run_name} {text[:8]}", _trained(client, run, benchmark, text))
    match = _VERSION.fullmatch(text)
    assert match is not None
    return of_version(
        client, registry.get_version(client, match["model"] or match["name"], match["version"]), benchmark
    )


def of_version(
    client: MlflowClient, version: ModelVersion, benchmark: str, policy: Literal["base", "champion"] | None = None
) -> Found:
    """The evaluation that a version was registered with.

    Args:
        client: from `store.connect`.
        version: a registered version.
        benchmark: "bfcl" or "api_bank".
        policy: that of another policy on the same items, instead of the version's own.

    Raises:
        UserError: the version names no run, or one that is not there.
    """
    name = f"{version.name} version {version.version}"
    if not version.run_id:
        raise UserError(f"{name}: the version names no run; give the evaluation's run or directory")
    title = f"{policy} beside {name}" if policy else name
    return Found(title, _run(client, version.run_id), artifact_directory(benchmark, policy))


def artifact_directory(benchmark: str, policy: str | None = None) -> str:
    """Where a registering run keeps the evaluation of its policy, or of another one on the same items."""
    return f"evaluations/{benchmark}" + (f"-{policy}" if policy else "")


def download(client: MlflowClient, found: Found, directory: Path) -> Path:
    """Copy the report and the answers of an evaluation into a directory; returns it.

    Raises:
        UserError: the run lacks them, or they cannot be read.
    """
    from mlflow.exceptions import MlflowException

    run_id = found.run.info.run_id
    directory.mkdir(parents=True, exist_ok=True)
    inside = PurePosixPath(found.directory)
    try:
        there = {artifact.path for artifact in client.list_artifacts(run_id, found.directory or None)}
        for name in (REPORT_FILE, ROWS_FILE):
            path = str(inside / name)
            if path not in there:
                raise UserError(
                    f"{found.name}: run {run_id} has no {path} (not evaluated, or made by an older version); evaluate "
                    "again"
                )
            copied = Path(client.download_artifacts(run_id, path, str(directory)))
            copied.replace(directory / name)  # some stores keep the path, some the name alone
    except (MlflowException, OSError) as error:
        raise UserError(f"{found.name}: run {run_id}: its files cannot be read: {store.reason(error)}") from error
    return directory


def _run(client: MlflowClient, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        raise UserError(f"run {run_id}: {store.reason(error)}; check the id and tracking.uri") from None


def _trained(client: MlflowClient, run: Run, benchmark: str, name: str) -> Run:
    """The newest finished evaluation of the trained policy in the pipeline run, or trial, that a run belongs to."""
    pipeline_run, trial = (run.data.tags.get(tag) for tag in (PIPELINE_RUN_TAG, TRIAL_TAG))
    stage = f"evaluate-{benchmark.replace('_', '-')}"
    if pipeline_run is not None:
        for wanted in (f"{stage}-trained", stage):
            tags = {PIPELINE_RUN_TAG: pipeline_run, STAGE_TAG: wanted} | ({TRIAL_TAG: trial} if trial else {})
            conditions = [f"tags.`{tag}` = '{value}'" for tag, value in tags.items()]
            found = client.search_runs(
                [run.info.experiment_id],
                " and ".join([*conditions, "attributes.status = 'FINISHED'"]),
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
            if found and trial is None and TRIAL_TAG in found[0].data.tags:
                raise UserError(f"{name}: an ablation has a policy per trial; give the run of a trial or an evaluation")
            if found:
                return found[0]
    raise UserError(
        f"{name}: no finished {stage} in its pipeline run {pipeline_run!r}; evaluate it, or give a directory"
    )
