"""Sending a run: its experiment, its pipeline version where one is wanted, the run itself."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import kfp_server_api

from pipelines.cluster.connection import Cluster, named
from pipelines.cluster.once import send_once
from pipelines.cluster.render import Rendered
from rest_core import __version__

_AGAIN = "submit again, which uses it where it is there after all"


def submit(cluster: Cluster, rendered: Rendered, *, upload: bool = False) -> kfp_server_api.V2beta1Run:
    """Create the run, in an experiment that is made where there is none.

    Args:
        cluster: where.
        rendered: what.
        upload: upload the pipeline as a version first, and run that; else the run carries the pipeline.

    Raises:
        ApiError: refused, or not known to be created; the message says which.
    """
    experiment_id = experiment(cluster, rendered.experiment)
    version = upload_version(cluster, rendered) if upload else None
    body = rendered.run(experiment_id=experiment_id, version=version)
    return send_once(
        lambda: cluster.client.runs.run_service_create_run(run=body),
        lambda: with_key(
            cluster.client.list_runs(
                experiment_id=experiment_id, filter=named(rendered.run_name), sort_by="created_at desc", page_size=50
            ).runs,
            rendered.key,
        ),
        what=f"run {rendered.run_name} was created",
        advice=f"see `rest status {rendered.run_name}` before you submit it again",
    )


def experiment(cluster: Cluster, name: str) -> str:
    """The id of the experiment `name`, which is made where there is none."""

    def find() -> str | None:
        found = cluster.client.list_experiments(filter=named(name), namespace=cluster.api_namespace).experiments or []
        return found[0].experiment_id if found else None

    def create() -> str:
        made = kfp_server_api.V2beta1Experiment(display_name=name, namespace=cluster.api_namespace)
        return str(cluster.client.experiments.experiment_service_create_experiment(experiment=made).experiment_id)

    return find() or send_once(create, find, what=f"experiment {name} was created", advice=_AGAIN, shared=True)


def upload_version(cluster: Cluster, rendered: Rendered) -> kfp_server_api.V2beta1PipelineVersion:
    """Upload the pipeline as a version of the pipeline of its name.

    The version's name holds the hash of its content: what is there already is used, not uploaded again.
    """
    client = cluster.client
    package = rendered.package()
    name = f"{__version__}-{hashlib.sha256(package.encode()).hexdigest()[:12]}"

    def find_pipeline() -> str | None:
        found = client.list_pipelines(filter=named(rendered.pipeline_name), namespace=cluster.api_namespace).pipelines
        return found[0].pipeline_id if found else None

    def find_version(pipeline_id: str) -> kfp_server_api.V2beta1PipelineVersion | None:
        found = client.list_pipeline_versions(pipeline_id, filter=named(name)).pipeline_versions
        return found[0] if found else None

    def create_pipeline() -> str:
        # Uploading the first file instead would make a version with the pipeline's name, not ours.
        made = kfp_server_api.V2beta1Pipeline(
            name=rendered.pipeline_name, display_name=rendered.pipeline_name, namespace=cluster.api_namespace
        )
        return str(client.pipelines.pipeline_service_create_pipeline(pipeline=made).pipeline_id)

    pipeline_id = find_pipeline() or send_once(
        create_pipeline,
        find_pipeline,
        what=f"pipeline {rendered.pipeline_name} was created",
        advice=_AGAIN,
        shared=True,
    )
    if known := find_version(pipeline_id):
        return known
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        path.write_text(package, encoding="utf-8")
        return send_once(
            lambda: client.pipeline_uploads.upload_pipeline_version(str(path), name=name, pipelineid=pipeline_id),
            lambda: find_version(pipeline_id),
            what=f"version {name} of pipeline {rendered.pipeline_name} was uploaded",
            advice=_AGAIN,
            shared=True,
        )


def with_key(listed: list[Any] | None, key: str) -> Any | None:
    """Of runs or schedules the one whose description holds `key`."""
    return next((item for item in listed or [] if key in (item.description or "")), None)
