"""Whether MLflow takes runs, files and models, and keeps them where they last."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_core.config import Config, RegistryConfig, TrackingConfig
from rest_core.credentials import redact
from rest_core.errors import UserError
from rest_core.operations.preflight.surroundings import Surroundings
from rest_core.operations.tracking import answers, registry, store
from rest_core.operations.tracking.tags import KIND_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient

_FILE = "preflight.txt"
_NO_VERSION = "0"  # versions are counted from 1


def check(config: Config, surroundings: Surroundings) -> str:
    """Create a run with a tag, a figure and a file, look for the file, ask the registry, and delete it all.

    What may not be deleted stays, and is reported: the stages delete nothing there.
    """
    tracking = config.tracking
    uri = store.resolve_uri(tracking)
    if store.is_local(uri):
        raise UserError(
            f"MLflow at {redact(uri)} would be on each pod's own disk; set tracking.uri, or MLFLOW_TRACKING_URI "
            "in the Secret named by secrets.mlflow"
        )
    stays = try_out(tracking, uri, lambda path: surroundings.volume_of(str(path)) is not None)
    if config.registry.enabled:
        check_rights(store.connect(tracking), config.registry)
    return "; ".join([f"{redact(uri)} takes runs, files and models", *stays])


def check_rights(client: MlflowClient, config: RegistryConfig) -> None:
    """Raise `UserError` unless new versions may be added to the model, where it is there already; nothing is changed.

    MLflow tells nobody which rights an account has on a model, and checks them before it looks for what is to be
    changed: an update of a version that cannot be there is denied, or finds no such version.
    """
    from mlflow.exceptions import MlflowException

    if registry.existing(client.get_registered_model, config.name) is None:
        return
    try:
        client.update_model_version(config.name, _NO_VERSION, description="")
    except MlflowException as error:
        if error.error_code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
            raise UserError(
                f"the registered model {config.name!r} is there, and this account may not add versions to it "
                f"({store.reason(error)}); give it the right to edit the model, or set another registry.name"
            ) from None


def try_out(tracking: TrackingConfig, uri: str, on_volume: Callable[[Path], bool] | None = None) -> list[str]:
    """The writing part of `check`, on any store; returns what could not be deleted, and why.

    Args:
        tracking: with the experiment, which is made where it is not there.
        uri: the store's.
        on_volume: whether a path is on a volume of the pods; None where artifacts may be anywhere.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = store.connect(tracking)
    stays: list[str] = []
    step = "open the experiment"
    try:
        if on_volume is not None:
            _require_a_place(client, uri, tracking.experiment)
        experiment = store.ensure_experiment(client, uri, tracking.experiment)
        if on_volume is not None:
            artifacts = str(client.get_experiment(experiment).artifact_location)
            store.require_lasting(tracking.experiment, artifacts, on_volume)
        step = "create a run"
        run = client.create_run(experiment, run_name="preflight", tags={KIND_TAG: "preflight"})
        try:
            step = "record a figure"
            client.log_metric(run.info.run_id, "preflight", 1.0)
            step = "store a file (the server's artifact store, or this pod's access to it)"
            client.log_text(run.info.run_id, _FILE, _FILE)
            repository: Any = get_artifact_repository(run.info.artifact_uri, tracking_uri=uri)
            if not any(found.path == _FILE for found in client.list_artifacts(run.info.run_id)):
                raise UserError(f"MLflow at {redact(uri)} took a file and does not list it")
            stays += _delete(f"the file {_FILE}", lambda: repository.delete_artifacts(_FILE))
        finally:
            stays += _delete("the run preflight", lambda: client.delete_run(run.info.run_id))
        step = "list registered models"
        client.search_registered_models(max_results=1)
    except UserError:
        raise
    except Exception as error:  # every client library has failures of its own: `explain` shortens them
        raise UserError(f"MLflow at {redact(uri)} did not {step}: {answers.explain(error)}") from error
    return stays


def _require_a_place(client: MlflowClient, uri: str, experiment: str) -> None:
    """Raise `UserError` where a pod would make the experiment in a database: its artifacts are in the pod, for good."""
    if not store.is_server(uri) and client.get_experiment_by_name(experiment) is None:
        raise UserError(
            f"MLflow at {redact(uri)} is a database without a server, and has no experiment {experiment!r}: one that a "
            "pod makes there has its artifacts on the pod's own disk; set tracking.uri to an MLflow server, or make "
            "the experiment with an s3:// artifact location"
        )


def _delete(what: str, delete: Callable[[], None]) -> list[str]:
    try:
        delete()
    except Exception as error:  # as above
        return [f"{what} of this check stays ({answers.explain(error)})"]
    return []
