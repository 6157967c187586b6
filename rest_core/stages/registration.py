"""A trained model into the registry, next to its champion."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rest_core import manifest
from rest_core.config import RegistryConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.operations import handoff
from rest_core.operations.result import METRICS_FILE, StageResult
from rest_core.operations.tracking.runs import finish_pipeline
from rest_core.stages.stage import open_stage, passed_on

log = logging.getLogger(__name__)


def compare_and_register(
    *,
    registry: RegistryConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    dataset: Path,
    policy: Path | str,
    evaluations: Mapping[str, Mapping[str, Path]],
    out: Path,
) -> StageResult:
    """Register the trained model as `challenger`, compare it with the champion, and close the pipeline's run.

    Args:
        evaluations: directories of evaluations by policy and benchmark: of the trained policy, and of the warm-up,
            which is what is registered where rl is off.
    """
    from rest_core.operations.tracking import registry as models
    from rest_core.operations.tracking.store import connect

    with open_stage("compare-and-register", out, tracking, pipeline_run, registry=registry) as stage:
        checkpoint = Path(policy)
        reports = _reports_on(checkpoint, evaluations)
        for name, folder in {"dataset": dataset, "policy": policy, **reports}.items():
            stage.add_input(name, folder)
        if not registry.enabled:
            result = stage.skip("switched off (registry.enabled=false)")
        elif not checkpoint.is_dir() or handoff.is_base_model(checkpoint):
            result = stage.skip("nothing was trained: the policy is the base model")
        else:
            facts = _facts(pipeline_run, dataset, checkpoint, reports)
            checkpoint = handoff.fetch(checkpoint)
            client = connect(tracking)
            if not stage.run.wait(timeout=60) or stage.run.run_id is None:
                raise UserError("MLflow has not taken the stage's run within 60 s; start the stage again")
            made = models.register_model(client, registry, checkpoint=checkpoint, run_id=stage.run.run_id, facts=facts)
            comparison = models.compare_with_champion(client, made.name, made.version, metric=registry.metric)
            log.info("%s", comparison)
            stage.run.tags(
                {"rest.registered": f"{made.name} version {made.version}", "rest.compared_with_champion": comparison}
            )
            record = {"name": made.name, "version": made.version, "source": made.source, "location": made.location}
            record["compared_with_champion"] = comparison
            (out / "registered.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            result = stage.finish({"registry/version": float(made.version)}, registered=record)
    finish_pipeline(tracking, pipeline_run=pipeline_run, spool=out.with_name(f"{out.name}.finish.tracking"))
    return result


def _reports_on(policy: Path, evaluations: Mapping[str, Mapping[str, Path]]) -> Mapping[str, Path]:
    return evaluations["warmup" if passed_on(policy) and "warmup" in evaluations else "trained"]


def _facts(pipeline_run: str, dataset: Path, policy: Path, evaluations: Mapping[str, Path]) -> Any:
    """What the registry and the model card say of a model, read from the folders' manifests."""
    from rest_core.operations.tracking.card import DataFact, ModelFacts

    data, trained = manifest.read(dataset), manifest.read(policy)
    metrics: dict[str, float] = {}
    measured: dict[str, str] = {}
    for name, folder in evaluations.items():
        made = manifest.read(folder)
        if "skipped" in made["counts"]:
            continue
        metrics |= json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        measured[name] = str(made["counts"]["measured_on"])
    sources = ", ".join(source["location"] for source in data["config"]["data"]["sources"])
    rows = int(data["counts"].get("data/rl", 0) + data["counts"].get("data/sft", 0))
    return ModelFacts(
        base_model=trained["config"]["model"]["source"],
        pipeline_run=pipeline_run,
        metrics=metrics,
        evaluations=measured,
        data=(DataFact("prepared", sources, data["sha256"], rows),),
        config=trained["config"],
        git_commit=trained["git_commit"],
        image=trained.get("image"),
        limits=(
            f"Prompted in the style {trained['config']['model']['prompt_style']!r}; other prompts give other results.",
        ),
    )
