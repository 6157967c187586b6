"""The runs that a stage records in: the pipeline's, in an ablation the trial's, and the stage's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from rest_core.operations.tracking import store, views
from rest_core.operations.tracking.journal import Record, RunIds
from rest_core.operations.tracking.tags import JOINED_TAG, KIND_TAG, PIPELINE_RUN_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

PARENT_TAG = "mlflow.parentRunId"


def open_runs(
    client: MlflowClient, uri: str, begin: Record, set_tags: Callable[[str, Mapping[str, str]], None]
) -> RunIds:
    """Find or make the runs of a stage.

    Args:
        begin: the journal's first record.
        set_tags: on a run.
    """
    experiment = store.ensure_experiment(client, uri, begin["experiment"])
    views.install(client, experiment)
    given: dict[int, Run] = {}  # by level: what somebody else (KFP) has made
    if begin["join"]:
        joined = client.get_run(begin["join"])
        experiment = joined.info.experiment_id
        # Without a parent it is given for the whole pipeline: each stage has a run of its own nested in it.
        if (above := joined.data.tags.get(PARENT_TAG)) is not None:
            given = {len(begin["levels"]) - 1: joined, 0: client.get_run(above)}
        else:
            given = {0: joined}
    chain: list[str] = []
    owned = []
    for number, level in enumerate(begin["levels"]):
        if (run := given.get(number)) is not None:
            set_tags(run.info.run_id, {**level["tags"], **({} if chain else {JOINED_TAG: "true"})})
        else:
            tags = {**level["tags"], **({PARENT_TAG: chain[-1]} if chain else {})}
            run = _ensure(client, experiment, level["name"], tags, level["unique"], begin["time"])
            if JOINED_TAG not in run.data.tags:
                owned.append(run.info.run_id)
        if run.data.tags.get(KIND_TAG) == "trial" and run.info.status != "RUNNING":
            client.update_run(run.info.run_id, status="RUNNING")  # as long as one of its stages runs
        chain.append(run.info.run_id)
    root = chain[0] if len(chain) > 2 else None
    return RunIds(experiment, run=chain[-1], pipeline=chain[-2:][0], root=root, owned=owned)


def _ensure(
    client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str], unique: Sequence[str], start_time: int
) -> Run:
    """The run that has the same `unique` tags; made where there is none."""
    wanted = {key: tags[key] for key in unique}
    if (found := find_run(client, experiment, wanted)) is not None:
        return found
    made = client.create_run(experiment, start_time=start_time, run_name=name, tags=dict(tags))
    first = find_run(client, experiment, wanted)
    if first is not None and first.info.run_id != made.info.run_id:  # another stage made it at the same time
        client.delete_run(made.info.run_id)
        return first
    return made


def find_pipeline_run(client: MlflowClient, experiment: str, pipeline_run: str) -> Run | None:
    """The parent run of a pipeline run; of several, the one that was made first."""
    return find_run(client, experiment, {PIPELINE_RUN_TAG: pipeline_run, KIND_TAG: "pipeline"})


def find_run(client: MlflowClient, experiment: str, tags: Mapping[str, str]) -> Run | None:
    """The run with these tags; of several, the one that was made first."""
    wanted = " AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    order = ["attributes.start_time ASC", "attributes.run_id ASC"]
    return next(iter(client.search_runs([experiment], wanted, max_results=1, order_by=order)), None)
