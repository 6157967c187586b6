"""Whether MLflow takes runs, files and models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.tracking import answers, store
from rest_core.operations.tracking.tags import KIND_TAG

_FILE = "preflight.txt"


def check(tracking: TrackingConfig) -> str:
    """Create a run with a tag, a figure and a file, look for the file, ask the registry, and delete it all.

    What may not be deleted stays, and is reported: the stages delete nothing there.
    """
    uri = store.resolve_uri(tracking)
    if store.is_local(uri):
        raise UserError(
            f"MLflow at {store.redact(uri)} would be on each pod's own disk; set tracking.uri, or MLFLOW_TRACKING_URI "
            "in the Secret named by secrets.mlflow"
        )
    return "; ".join([f"{store.redact(uri)} takes runs, files and models", *try_out(tracking, uri)])


def try_out(tracking: TrackingConfig, uri: str) -> list[str]:
    """The writing part of `check`, on any store; returns what could not be deleted, and why."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = store.connect(tracking)
    stays: list[str] = []
    step = "open the experiment"
    try:
        experiment = store.ensure_experiment(client, uri, tracking.experiment)
        step = "create a run"
        run = client.create_run(experiment, run_name="preflight", tags={KIND_TAG: "preflight"})
        try:
            step = "record a figure"
            client.log_metric(run.info.run_id, "preflight", 1.0)
            step = "store a file (the server's artifact store, or this pod's access to it)"
            client.log_text(run.info.run_id, _FILE, _FILE)
            repository: Any = get_artifact_repository(run.info.artifact_uri, tracking_uri=uri)
            if not any(found.path == _FILE for found in client.list_artifacts(run.info.run_id)):
                raise UserError(f"MLflow at {store.redact(uri)} took a file and does not list it")
            stays += _delete(f"the file {_FILE}", lambda: repository.delete_artifacts(_FILE))
        finally:
            stays += _delete("the run preflight", lambda: client.delete_run(run.info.run_id))
        step = "list registered models"
        client.search_registered_models(max_results=1)
    except UserError:
        raise
    except Exception as error:  # every client library has failures of its own: `explain` shortens them
        raise UserError(f"MLflow at {store.redact(uri)} did not {step}: {answers.explain(error)}") from error
    return stays


def _delete(what: str, delete: Callable[[], None]) -> list[str]:
    try:
        delete()
    except Exception as error:  # as above
        return [f"{what} of this check stays ({answers.explain(error)})"]
    return []
