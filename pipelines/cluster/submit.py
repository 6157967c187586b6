"""Creating a run: its experiment, the pipeline version if it is uploaded, the run itself. None is created twice."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import kfp_server_api
import yaml

from pipelines.cluster.client import Cluster, named
from pipelines.cluster.errors import IN_DOUBT, ApiError
from rest_core import __version__
from rest_core.errors import EXIT_INTERRUPTED, Preempted

T = TypeVar("T")

_IDS = {
    "V2beta1Experiment": "experiment_id",
    "V2beta1Pipeline": "pipeline_id",
    "V2beta1PipelineVersion": "pipeline_version_id",
    "V2beta1RecurringRun": "recurring_run_id",
    "V2beta1Run": "run_id",
}
LOOKUP_PAUSES = (0.0, 2.0, 5.0)  # seconds before each lookup of an object whose creation was not answered


def submit(
    cluster: Cluster, run: kfp_server_api.V2beta1Run, *, experiment: str, upload: bool
) -> kfp_server_api.V2beta1Run:
    """Create the run.

    Args:
        cluster: where.
        run: the request (`request.run_request`), which gets the ids of experiment and version.
        experiment: name of its experiment, which is created if there is none.
        upload: upload the pipeline as a version first, and run that; else the run carries the pipeline.

    Raises:
        ApiError: refused, or not known to be created.
    """
    add_ids(cluster, run, experiment=experiment, upload=upload)
    lookup = {"experiment_id": run.experiment_id, "filter": named(run.display_name), "sort_by": "created_at desc"}
    return create_once(
        lambda: cluster.runs.run_service_create_run(run=run),
        lambda: find_created(run, cluster.list_runs(page_size=50, **lookup).runs),
    )


def add_ids(cluster: Cluster, request: Any, *, experiment: str, upload: bool) -> None:
    """Give the request for a run or schedule the ids of its experiment and, with `upload`, of its pipeline version."""
    namespace = cluster.api_namespace
    body = kfp_server_api.V2beta1Experiment(display_name=experiment, namespace=namespace)
    request.experiment_id = _get_or_create(
        lambda: cluster.list_experiments(filter=named(experiment), namespace=namespace).experiments,
        lambda: cluster.experiments.experiment_service_create_experiment(experiment=body),
    ).experiment_id
    if upload:
        version = _version(cluster, request.pipeline_spec)
        request.pipeline_version_reference = kfp_server_api.V2beta1PipelineVersionReference(
            pipeline_id=version.pipeline_id, pipeline_version_id=version.pipeline_version_id
        )
        request.pipeline_spec = None


def create_once(send: Callable[[], T], find: Callable[[], T | None]) -> T:
    """What `send` creates. It is never sent again: if its answer is lost, `find` looks for what was created.

    Args:
        send: the request.
        find: reads what it creates, by a name or description that nothing else has; None if there is none.

    Raises:
        ApiError: the request was refused, or it is not known whether it was carried out.
        Preempted: interrupted before that was known.
    """
    try:
        try:
            made = send()
            if getattr(made, _IDS[type(made).__name__]) is None:
                raise ApiError("the server's answer has no id", "", in_doubt=True)
            return made
        except ApiError as error:
            if not error.in_doubt and error.status != 409:  # 409: somebody else has just created it
                raise
            for seconds in LOOKUP_PAUSES if error.in_doubt else LOOKUP_PAUSES[:1]:
                time.sleep(seconds)
                with suppress(ApiError):  # the user sees the error of the request itself
                    if (found := find()) is not None:
                        return found
            raise
    except KeyboardInterrupt:
        raise Preempted(f"interrupted before an answer came; {IN_DOUBT}", exit_code=EXIT_INTERRUPTED) from None


def find_created(request: Any, listed: list[Any] | None) -> Any | None:
    """The run or schedule that `request` has created, among those that are listed; None if it is not there."""
    return next((item for item in listed or () if item.description == request.description), None)


def pipeline_name(spec: dict[str, Any]) -> str:
    """The name of the pipeline that a run carries."""
    return str(spec["pipeline_spec"]["pipelineInfo"]["name"])


def _get_or_create(list_named: Callable[[], list[T] | None], create: Callable[[], T]) -> T:
    def find() -> T | None:
        return next(iter(list_named() or ()), None)

    return find() or create_once(create, find)


def _version(cluster: Cluster, spec: dict[str, Any]) -> kfp_server_api.V2beta1PipelineVersion:
    """The uploaded version; its name contains the hash of its content, so that nothing is uploaded twice."""
    package, name, namespace = yaml.safe_dump_all(spec.values()), pipeline_name(spec), cluster.api_namespace
    version = f"{__version__}-{hashlib.sha256(package.encode()).hexdigest()[:12]}"
    # Uploading the first file as a pipeline instead would name its version after the pipeline.
    body = kfp_server_api.V2beta1Pipeline(name=name, display_name=name, namespace=namespace)
    pipeline_id = _get_or_create(
        lambda: cluster.list_pipelines(filter=named(name), namespace=namespace).pipelines,
        lambda: cluster.pipelines.pipeline_service_create_pipeline(pipeline=body),
    ).pipeline_id
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "pipeline.yaml"
        file.write_text(package, encoding="utf-8")
        upload = cluster.pipeline_uploads.upload_pipeline_version
        return _get_or_create(
            lambda: cluster.list_pipeline_versions(pipeline_id, filter=named(version)).pipeline_versions,
            lambda: upload(str(file), name=version, pipelineid=pipeline_id),
        )
