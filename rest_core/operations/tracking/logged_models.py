"""Policies as MLflow's LoggedModels: made by one run, measured by others, perhaps registered.

A model is found by what it is: the hash of a checkpoint that a stage has made, or the place that another one was taken
from. So the evaluations of a base model in many pipelines are figures of one model.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from rest_core.operations.tracking.store import asks
from rest_core.operations.tracking.tags import IDENTITY_TAG, MADE_BY_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

_VERSIONS_TAG = "mlflow.modelVersions"  # of MLflow's own registration: the pages of models show it
_NO_NAME = re.compile(r"[/:.%\"'\s]+")  # what MLflow refuses in a model's name, and spaces
_NO_VALUE = re.compile(r"['\"`]")  # what its filters do not take


def find(client: MlflowClient, experiment_id: str, identity: str) -> LoggedModel | None:
    """The model of an identity, or the one that was registered as the version "NAME version N"."""
    for tag, value in ((IDENTITY_TAG, _value(identity)), (_version_tag(identity), "true")):
        found = client.search_logged_models(
            [experiment_id],
            filter_string=f"tags.`{tag}` = '{value}'",
            max_results=1,
            order_by=[{"field_name": "creation_timestamp", "ascending": True}],
        )
        if found:
            return found[0]
    return None


def ensure(
    client: MlflowClient, experiment_id: str, identity: str, name: str, source_run_id: str | None = None
) -> LoggedModel:
    """The model of an identity; made where there is none.

    Args:
        source_run_id: the run that has made it; None for a model that no run has.
    """
    found = find(client, experiment_id, identity)
    if found is None:
        made = client.create_logged_model(
            experiment_id,
            name=_NO_NAME.sub("-", name).strip("-") or "model",
            source_run_id=source_run_id,
            tags={IDENTITY_TAG: _value(identity)},
        )
        found = find(client, experiment_id, identity) or made
        if found.model_id != made.model_id:  # another stage made it at the same time
            client.delete_logged_model(made.model_id)
    if str(found.status) != "READY":  # a process that was killed may have left it so
        return client.finalize_logged_model(found.model_id, "READY")
    return found


def is_output(client: MlflowClient, run_id: str, model: LoggedModel) -> None:
    """Note that a run has made a model. MLflow takes it once."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if outputs is None or model.model_id not in {one.model_id for one in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def is_input(client: MlflowClient, run_id: str, model: LoggedModel) -> None:
    """Note that a run has used a model."""
    from mlflow.entities import LoggedModelInput

    client.log_inputs(run_id, models=[LoggedModelInput(model.model_id)])


def note_maker(client: MlflowClient, model: LoggedModel, run_id: str) -> None:
    """Note on a model the run that has made it.

    Where an evaluation of it was sent first, MLflow's own field for it is empty, and cannot be set any more.
    """
    client.set_logged_model_tags(model.model_id, {MADE_BY_TAG: run_id})


@asks
def note_version(client: MlflowClient, model: LoggedModel, name: str, version: str) -> None:
    """Note on a model a version that it was registered as."""
    known: list[dict[str, Any]] = json.loads(model.tags.get(_VERSIONS_TAG, "[]"))
    entry = {"name": name, "version": int(version)}
    versions = [*known, *([] if entry in known else [entry])]
    client.set_logged_model_tags(
        model.model_id, {_VERSIONS_TAG: json.dumps(versions), _version_tag(f"{name} version {version}"): "true"}
    )


def _version_tag(title: str) -> str:
    return re.sub(r"[^\w\-. :/]", "_", f"rest.registered/{title}", flags=re.ASCII)[:250]


def _value(identity: str) -> str:
    return _NO_VALUE.sub("", identity)[:500]
