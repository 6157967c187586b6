"""The data for all that follows."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from rest_core import manifest
from rest_core.config import ApiBankConfig, DataConfig, ModelConfig, StorageConfig, TrackingConfig
from rest_core.operations.result import StageResult
from rest_core.stages.stage import NO_STORAGE, open_stage

log = logging.getLogger(__name__)


def prepare_data(
    *,
    model: ModelConfig,
    data: DataConfig,
    api_bank: ApiBankConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    out: Path,
    storage: StorageConfig = NO_STORAGE,
) -> StageResult:
    """Read, validate, deduplicate, measure and split the training data."""
    from rest_core.data.evaluation_sets import api_bank_folder, evaluation_questions
    from rest_core.data.prepare import describe_drops, prepare
    from rest_core.data.store import COLUMNS
    from rest_core.model.loading import load_tokenizer
    from rest_core.operations import policies
    from rest_core.styles.create import training_style

    with open_stage(
        "prepare-data", out, tracking, pipeline_run, storage, model=model, data=data, api_bank=api_bank
    ) as stage:
        tokenizer = load_tokenizer(policies.fetched(model.source), model)
        style = training_style(model, tokenizer)
        folder, reason = api_bank_folder(api_bank)
        if folder is None:
            log.warning("the overlap with API-Bank is not checked: %s", reason)
        report = prepare(
            data,
            style=style,
            tokenizer=tokenizer,
            evaluation_questions=evaluation_questions(folder),
            out=out,
        )
        (out / "prompt_template.txt").write_text(f"{style.template.rstrip()}\n", encoding="utf-8")
        stage.inputs["sources"] = report["inputs"]
        for name in ("report.json", "prompt_template.txt"):
            stage.run.artifact(out / name)
        dropped = [{"reason": reason, "records": count} for reason, count in report["dropped"].items()]
        if dropped:
            stage.run.table(dropped, "dropped")
        metrics = {f"data/{name}": float(count) for name, count in report["splits"].items()}
        metrics["data/read"] = float(sum(source["read"] for source in report["sources"].values()))
        metrics["data/dropped"] = float(sum(report["dropped"].values()))
        result = stage.finish(metrics, overlap_with_api_bank=reason or "checked")
        stage.run.dataset(
            "prepared",
            source=", ".join(source.location for source in data.sources),
            digest_sha256=manifest.read(out)["sha256"],
            rows=sum(report["splits"].values()),
            context="training",
            columns=COLUMNS,
        )
        return replace(result, notes=tuple(describe_drops(report)))
