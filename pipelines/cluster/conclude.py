"""The end of a run that was retried, reported from here.

KFP keeps what has succeeded when it retries a run: report-status too, which has reported the failure before, and is not
run again. So its work is done once more by whoever has waited: the outcome into MLflow, the scratch space removed.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cluster.runs import ENDED
from rest_core import storage
from rest_core.config import LaunchConfig, StorageConfig, TrackingConfig, validate
from rest_core.errors import UserError

if TYPE_CHECKING:
    from kfp_server_api import V2beta1Run


def was_retried(run: V2beta1Run) -> bool:
    """Whether a run has ended more than once."""
    return sum(one.state in ENDED for one in run.state_history or ()) > 1


def conclude(run: V2beta1Run, *, ui: str | None) -> str:
    """Do for a run that has ended what report-status does; returns its report (Markdown).

    Args:
        run: as KFP has it, with its parameters.
        ui: address of KFP's pages.

    Raises:
        UserError: the run is another pipeline's, has not ended, or MLflow's address is not known here.
    """
    from rest_core.operations.status import exit_task
    from rest_core.operations.status.final import FinalStatus, Links
    from rest_core.operations.tracking import store

    if run.state not in ENDED:
        raise UserError(f"run {run.display_name} has not ended")
    given = (run.runtime_config and run.runtime_config.parameters) or {}
    if "tracking" not in given:
        raise UserError(f"run {run.display_name} has no parameter tracking: it is of another pipeline")
    tracking = _section(TrackingConfig, given, "tracking")
    if store.is_local(store.resolve_uri(tracking)):
        raise UserError(
            "set MLFLOW_TRACKING_URI to the server that the run has recorded in: to report its end there, from here"
        )
    places, notes = _section(StorageConfig, given, "storage"), ""
    if places.location is not None and not storage.is_s3(places.location):
        notes = f"\n- Its scratch space stays: {places.location}/runs is on a volume, which pods alone have\n"
        places = StorageConfig()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.md"
        exit_task.conclude(
            tracking,
            Links(kfp=ui),
            FinalStatus(state=run.state),
            storage=places,
            launch=_section(LaunchConfig, given, "launch"),
            pipeline_run=given.get("pipeline_run") or run.run_id,
            page=page,
        )
        return page.read_text(encoding="utf-8") + notes


def _section(model: Any, given: dict[str, Any], name: str) -> Any:
    return validate(model, given.get(name) or {}, where=f"the run's parameter {name}")
