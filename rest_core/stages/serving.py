"""A registered model onto the cluster that has trained it."""

from __future__ import annotations

from pathlib import Path

import yaml

from rest_core.config import RegistryConfig, TrackingConfig
from rest_core.operations import kserve
from rest_core.operations.result import StageResult
from rest_core.stages.stage import open_stage

MANIFEST_FILE = "inference-service.yaml"


def deploy_model(
    *, registry: RegistryConfig, tracking: TrackingConfig, service: kserve.Service, pipeline_run: str, out: Path
) -> StageResult:
    """Make or change the InferenceService of the version that has the service's alias.

    That is the one that has the alias now: a champion stays the same until `rest promote` chooses another one.

    Raises:
        UserError: no pod could read the version's checkpoint, or the cluster refuses the service.
    """
    from rest_core.operations.tracking import registry as models
    from rest_core.operations.tracking import store, versions

    with open_stage("deploy-model", out, tracking, pipeline_run, registry=registry, service=service) as stage:
        if not registry.enabled:
            return stage.skip("switched off (registry.enabled=false)")
        client = store.connect(tracking)
        model = models.existing(client.get_registered_model, registry.name)
        if model is None or service.alias not in model.aliases:
            return stage.skip(f"{registry.name} has no {service.alias} yet", quiet=True)
        version = versions.version(tracking, registry.name, service.alias)
        manifest = kserve.inference_service(version, service)
        (out / MANIFEST_FILE).write_text(yaml.safe_dump(manifest, sort_keys=False), encoding="utf-8")
        stage.run.artifact(out / MANIFEST_FILE)
        kserve.apply(manifest)
        stage.run.tags({"rest.deployed": version.title})
        return stage.finish({}, deployed=version.title)
