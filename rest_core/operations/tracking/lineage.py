"""Where a registered version comes from, link by link, each looked at: does it exist, is it what was recorded?"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rest_core import manifest, storage
from rest_core.errors import UserError
from rest_core.evaluation.paired import read
from rest_core.operations import handoff
from rest_core.operations.catalogue import benchmarks
from rest_core.operations.status.reproduce import locate
from rest_core.operations.tracking import evaluations, registry, store, versions
from rest_core.operations.tracking.runs import PIPELINE_FILE_TAG, PIPELINE_SHA_TAG
from rest_core.operations.tracking.tags import INPUT_TAG, KIND_TAG, PIPELINE_RUN_TAG, STAGE_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

_TRAININGS = ("rest-rl", "sft-warmup")  # the later one first
_COMMIT_TAG = "mlflow.source.git.commit"


@dataclass(frozen=True)
class Link:
    """A step of the way back."""

    name: str  # "training run"
    found: str  # what was recorded, for people
    problem: str | None = None  # why it does not hold


@store.asks
def lineage(client: MlflowClient, version: ModelVersion) -> list[Link]:
    """Version → checkpoint → evaluations → training run → data → commit → image → compiled pipeline.

    The checkpoint is downloaded where it lies elsewhere, and hashed; so is the data, where it lies on this machine.
    """
    training = _training(client, version)
    return [
        Link("version", f"{version.name} version {version.version}", _unless(version.status, "READY")),
        _checkpoint(client, version),
        *_evaluations(client, version),
        Link("training run", "none", "its pipeline run has no finished training in MLflow")
        if training is None
        else Link("training run", f"{training.info.run_name} {training.info.run_id}"),
        _data(version, training),
        _code(version, training),
        _image(version),
        _pipeline(client, version, training),
    ]


def _unless(found: str | None, wanted: str) -> str | None:
    return None if found == wanted else f"is {found}, not {wanted}"


def _checkpoint(client: MlflowClient, version: ModelVersion) -> Link:
    recorded = version.tags.get(registry.CHECKPOINT_TAG)
    try:
        place = versions.located(client, version)
        folder = place.fetch()
        files = {path.name: manifest.sha256_file(path) for path in registry.checkpoint_files(folder)}
    except UserError as problem:
        return Link("checkpoint", str(version.source), str(problem))
    found = manifest.sha256_contents(files)
    otherwise = "its hash was not recorded" if recorded is None else "is not what was registered (SHA-256 differs)"
    return Link("checkpoint", f"{place.location} ({found[:12]})", None if found == recorded else otherwise)


def _evaluations(client: MlflowClient, version: ModelVersion) -> Iterator[Link]:
    problems = []
    there = False
    for benchmark in (str(stage.benchmark) for stage in benchmarks()):
        with tempfile.TemporaryDirectory() as scratch:
            try:
                found = evaluations.of_version(client, version, benchmark)
                summary, rows = read(evaluations.download(client, found, Path(scratch)))
            except UserError as problem:
                problems.append(str(problem))
                continue
        there = True
        yield Link("evaluation", f"{summary.title}, {len(rows)} items {summary.measured.items[:12]}")
    if not there:
        yield Link("evaluation", "none", problems[0])


def _runs(client: MlflowClient, version: ModelVersion, **tags: str) -> list[Run]:
    run = registry.existing(client.get_run, version.run_id) if version.run_id else None
    name = version.tags.get("pipeline_run")
    if run is None or not name:
        return []
    wanted = {PIPELINE_RUN_TAG: name, **tags}
    conditions = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in wanted.items())
    return list(
        client.search_runs(
            [run.info.experiment_id], conditions, order_by=["attributes.start_time DESC"], max_results=10
        )
    )


def _training(client: MlflowClient, version: ModelVersion) -> Run | None:
    for stage in _TRAININGS:
        for run in _runs(client, version, **{STAGE_TAG: stage}):
            if run.info.status == "FINISHED" and "rest.skipped" not in run.data.tags:
                return run
    return None


def _data(version: ModelVersion, training: Run | None) -> Link:
    hashes = {tag: value for tag, value in version.tags.items() if re.fullmatch("data/.*/sha256", tag)}
    if not hashes:
        return Link("data", "none", "no hash of the training data was recorded")
    recorded = next(iter(hashes.values()))
    where = "" if training is None else training.data.tags.get(f"{INPUT_TAG}dataset", "")
    shown = f"{where or 'unknown place'} ({recorded[:12]})"
    if training is not None:
        trained = {value for tag, value in training.data.tags.items() if re.fullmatch("data/.*/sha256", tag)}
        if trained and recorded not in trained:
            return Link("data", shown, "the training read other data than the version names")
    try:
        return Link("data", shown, _data_problem(where, recorded))
    except UserError as problem:
        return Link("data", shown, str(problem))


def _data_problem(where: str, recorded: str) -> str | None:
    if not where:
        return "where it lay was not recorded"
    where = locate(where)
    if storage.is_s3(where):
        return None if storage.list_files(where) else "is not there any more"
    folder = Path(where)
    if not (folder / manifest.FILE_NAME).is_file():
        return "is not on this machine any more"
    pointer = handoff.read(folder)
    found = manifest.sha256_folder(folder) if pointer is None else pointer.sha256
    return None if found == recorded else "is not what was trained on (SHA-256 differs)"


def _code(version: ModelVersion, training: Run | None) -> Link:
    commit = version.tags.get("git_commit")
    if commit is None:
        return Link("code", "none", "no git commit was recorded")
    trained = commit if training is None else training.data.tags.get(_COMMIT_TAG, commit)
    return Link("code", commit, None if trained == commit else f"the training ran at commit {trained}")


def _image(version: ModelVersion) -> Link:
    image = version.tags.get("image")
    if image is None:
        return Link("image", "none was recorded, as outside of a cluster")
    problem = None if "@sha256:" in image else "has no digest, so that it may be another one by now"
    return Link("image", image, problem)


def _pipeline(client: MlflowClient, version: ModelVersion, training: Run | None) -> Link:
    parents = _runs(client, version, **{KIND_TAG: "pipeline"})
    tags = parents[0].data.tags if parents else {}
    digest, file = tags.get(PIPELINE_SHA_TAG), tags.get(PIPELINE_FILE_TAG)
    if digest is None or file is None:
        run = version.tags.get("pipeline_run", "unknown")
        on_cluster = training is not None and version.tags.get("image") is not None
        return Link(
            "pipeline", f"KFP run {run}" if on_cluster else run, None if on_cluster else "its YAML was not kept"
        )
    path = Path(file)
    if not path.is_file():
        return Link("pipeline", file, "is not on this machine any more")
    return Link("pipeline", f"{file} ({digest[:12]})", _unless(manifest.sha256_file(path), digest) and "has changed")
