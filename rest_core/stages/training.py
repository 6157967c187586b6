"""The training stages: supervised warm-up and ResT.

Both may run as several processes (`rest_core.operations.launch`, or `accelerate launch` by hand): all train, the
first alone writes and records.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

from rest_core.ablation.settings import Trial
from rest_core.config import (
    LaunchConfig,
    LoraConfig,
    ModelConfig,
    RlConfig,
    SftConfig,
    StorageConfig,
    TrackingConfig,
    VllmEngineConfig,
)
from rest_core.operations import handoff, policies
from rest_core.operations.launch.job import Job
from rest_core.operations.result import StageResult, alone_in, writing_errors
from rest_core.operations.tracking.tags import DTYPE_TAG
from rest_core.processes import is_launched, is_main_process
from rest_core.stages.stage import NO_STORAGE, StageContext, open_stage
from rest_core.styles.style import Style

ONE_A_GPU = LaunchConfig()
ADAPTER = "adapter"  # folder beside the merged weights


def sft_warmup(
    *,
    model: ModelConfig,
    sft: SftConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    dataset: Path,
    out: Path,
    launch: LaunchConfig = ONE_A_GPU,
    storage: StorageConfig = NO_STORAGE,
) -> StageResult:
    """Supervised warm-up; the model is passed on by reference where `sft.enabled` is false.

    Runs as one process a GPU, or as many as `launch` says. Where a storage location is configured, checkpoints
    (`sft.checkpoint_every`) are mirrored to it, which this pipeline run resumes from when the stage is retried.
    """
    from rest_core.data.store import load_split, to_sample
    from rest_core.model.loading import load_model, load_tokenizer
    from rest_core.operations.preflight.gpu import require_memory

    if sft.enabled:
        sections = {"model": model, "sft": sft, "tracking": tracking, "storage": storage}
        job = Job.of("sft-warmup", sections, {"dataset": dataset}, pipeline_run)
        if (result := _run_elsewhere(job, launch.model_copy(update={"train_job": None}), out)) is not None:
            return result
    with open_stage("sft-warmup", out, tracking, pipeline_run, storage, model=model, sft=sft) as stage:
        digest = stage.add_input("dataset", dataset)
        if not sft.enabled:
            if is_main_process():
                policies.point_to(out, _absolute(model.source))
            return stage.skip("switched off (sft.enabled=false): cold start")
        source = policies.fetched(model.source)
        require_memory(source, model, sft)
        from rest_core.styles.create import training_style
        from rest_core.training import sft as training

        dataset = handoff.fetch(dataset)
        tokenizer = load_tokenizer(source, model)
        style = training_style(model, tokenizer)
        rows, held_out = (
            training.encode(tokenizer, map(to_sample, load_split(dataset, split)), style, weights)
            for split, weights in (("sft", sft.region_weights), ("sft_validation", None))
        )
        _record_split(stage, "sft", dataset, digest, len(rows))
        # A training resumes from another attempt only where data, model and settings are the same.
        described = "/".join([digest, model.model_dump_json(), sft.model_dump_json()])
        key = hashlib.sha256(described.encode()).hexdigest()[:16]
        place = _mirror(storage, pipeline_run)
        trained, metrics = training.train(
            load_model(source, model),
            tokenizer,
            rows,
            held_out,
            sft,
            model,
            folder=out / "checkpoints" / key,
            on_metrics=stage.run.metrics,
            mirror=None if place is None else f"{place}/sft-warmup-{key}",
        )
        _save(trained, tokenizer, model, style, sft.lora, out)
        return stage.finish(metrics)


def rest_rl(
    *,
    model: ModelConfig,
    rl: RlConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    dataset: Path,
    policy: Path | str,
    out: Path,
    launch: LaunchConfig = ONE_A_GPU,
    storage: StorageConfig = NO_STORAGE,
    trial: Trial | None = None,
) -> StageResult:
    """ResT training, with the scheme and the seed of a trial where one is given.

    The policy is passed on where `rl.enabled` is false. Runs as one process a GPU, or as many as `launch` says, or on
    several nodes. Where a storage location is configured and `rl.mirror` is not, checkpoints are mirrored to it, for
    this pipeline run to take up when the stage is retried.
    """
    from rest_core.data.store import load_split, to_sample
    from rest_core.model.loading import load_model, load_tokenizer
    from rest_core.model.precision import compute_dtype
    from rest_core.operations.preflight.gpu import require_memory

    if trial is not None:
        rl = trial.applied_to(rl)
    if rl.enabled:
        sections = {"model": model, "rl": rl, "tracking": tracking, "storage": storage}
        job = Job.of("rest-rl", sections, {"dataset": dataset, "policy": policy}, pipeline_run, trial)
        most = 1 if isinstance(rl.engine, VllmEngineConfig) else None  # vLLM in the process: a training of one
        if (result := _run_elsewhere(job, launch, out, most)) is not None:
            return result
    with open_stage("rest-rl", out, tracking, pipeline_run, storage, trial, model=model, rl=rl) as stage:
        digest = stage.add_input("dataset", dataset)
        origin = stage.add_input("policy", policy)
        if not rl.enabled:
            if is_main_process():
                policies.pass_on(policy, out)
            return stage.skip("switched off (rl.enabled=false)")
        policy = policies.fetched(policy)
        require_memory(policy, model, rl)
        stage.run.tags({DTYPE_TAG: str(compute_dtype(model)).removeprefix("torch.")})
        from rest_core.algorithm.rest import ResT
        from rest_core.styles.create import training_style
        from rest_core.training.plots import training_figure
        from rest_core.training.progress import Observer
        from rest_core.training.rl import RlTrainer
        from rest_core.training.tasks import make_tasks

        dataset = handoff.fetch(dataset)
        tokenizer = load_tokenizer(policy, model)
        style = training_style(model, tokenizer)
        tasks = make_tasks(tokenizer, map(to_sample, load_split(dataset, "rl")), style)
        validation = make_tasks(tokenizer, map(to_sample, load_split(dataset, "rl_validation")), style)
        _record_split(stage, "rl", dataset, digest, len(tasks))
        master = load_model(policy, model)
        trainer = RlTrainer(
            master,
            tokenizer,
            tasks,
            rl,
            model,
            # Beside `out` and not in it: it must outlive the moment when `out` is complete.
            folder=out.with_name(f"{out.name}.training"),
            fingerprint=f"{digest}/{origin}",
            observer=Observer(stage.run.metrics, stage.run.table),
            validation=validation,
            algorithm=ResT(rl, tokenizer, style.format),
            mirror=rl.mirror or _mirror(storage, pipeline_run),
        )
        metrics = trainer.train()
        history = trainer.progress.history.entries
        if history:
            stage.run.figure(training_figure(history), "training")
            last = next(entry for entry in reversed(history) if "reward/total" in entry)
            metrics |= {f"rl/last/{name}": last[name] for name in ("reward/total", "response/truncated_share")}
        _save(trainer.model, tokenizer, model, style, rl.lora, out)
        result = stage.finish(metrics)
        if is_main_process():
            shutil.rmtree(trainer.progress.folder, ignore_errors=True)
        return result


def _run_elsewhere(job: Job, launch: LaunchConfig, out: Path, most: int | None = None) -> StageResult | None:
    """Run a training on several nodes or in several processes where `launch` wants that; None = it runs here.

    Args:
        most: processes on this machine where their number is not configured.
    """
    from rest_core.operations.launch import launcher, train_job

    if is_launched():
        return None
    with alone_in(out):  # looked at before anything is written; the first process holds it
        pass
    with writing_errors(job.stage, out):
        if launch.train_job is not None:
            return train_job.run(job, out=out, launch=launch)
        if (processes := launcher.processes(launch, most)) > 1:
            return launcher.run(job, out=out, processes=processes, sharding=launch.sharding)
    return None


def _mirror(storage: StorageConfig, pipeline_run: str) -> str | None:
    """Where a run's checkpoints are copied to where nothing else is configured; no part of what is recorded of it."""
    return None if storage.location is None else f"{handoff.scratch(storage.location, pipeline_run)}/checkpoints"


def _record_split(stage: StageContext, split: str, dataset: Path, digest: str, rows: int) -> None:
    from rest_core.data.store import COLUMNS

    stage.run.dataset(
        split,
        source=str(dataset),
        digest_sha256=digest,
        rows=rows,
        context="training",
        split=split,
        columns=COLUMNS,
    )


def _save(trained: Any, tokenizer: Any, model: ModelConfig, style: Style, lora: LoraConfig | None, out: Path) -> None:
    """The flat checkpoint, and the adapter where it is asked for; what was needed to resume goes once it is whole."""
    import torch

    from rest_core.model.loading import save_policy
    from rest_core.training.distributed import gather_weights

    gather_weights(trained)
    if not is_main_process():
        return
    if lora is not None and lora.keep_adapter:
        trained.save_pretrained(out / ADAPTER)  # before its weights are merged
    save_policy(trained, tokenizer, out, dtype=getattr(torch, model.dtype), style=style)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _absolute(source: str) -> str:
    """A relative folder as an absolute one, so that a reference to it holds from anywhere."""
    return str(Path(source).absolute()) if Path(source).is_dir() else source
