"""One function a stage: typed configuration and input folders in, an output folder and figures out.

The same function runs from the command line, under kfp.local, in a container and on a cluster. Each fills `out`,
writes `metrics.json` and, last of all, `manifest.json`; an error that the user can mend is also left as `error.json`.
A stage that is switched off passes its input on, or says in its manifest that it was skipped and why.

`preflight` and `report_status` come before and after the others on a cluster, and report on the run itself.

The training stages may run as several processes (`rest_core.nodes`, `accelerate launch`): all train, the first alone
writes and records. Where a storage location is configured, large outputs go there, and the folder refers to them
(`rest_core.handoff`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from safetensors import SafetensorError
from tqdm import tqdm

from rest_core import handoff, manifest, storage
from rest_core.ablation.collect import TRAINING, training_record
from rest_core.ablation.settings import AblationConfig, Trial
from rest_core.config import (
    ApiBankConfig,
    BfclConfig,
    DataConfig,
    GenerationConfig,
    LaunchConfig,
    ModelConfig,
    RegistryConfig,
    RlConfig,
    SftConfig,
    StorageConfig,
    TrackingConfig,
    VllmEngineConfig,
    validate,
)
from rest_core.errors import EXIT_USER_ERROR, Preempted, UserError
from rest_core.failures import Failure, ending_together
from rest_core.preflight.surroundings import Surroundings
from rest_core.processes import is_launched, is_main_process
from rest_core.status.final import FinalStatus, Links
from rest_core.tracking.delivery import INPUT_TAG
from rest_core.tracking.runs import StageRun, TrialRun, finish_pipeline, stage_run

if TYPE_CHECKING:
    from rest_core.evaluation.report import Report
    from rest_core.rollout.transformers_engine import TransformersEngine

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.json"
ERROR_FILE = "error.json"
PAGE_FILE = "report.md"  # of preflight and report-status, for people

_AS_IT_IS = StorageConfig()
_BY_ITSELF = LaunchConfig()


@dataclass(frozen=True)
class StageResult:
    """What a stage hands to whoever called it, next to its folder."""

    metrics: dict[str, float]
    skipped: str | None = None  # why the stage did nothing


@dataclass
class _Stage:
    """A stage that runs: its folder and MLflow run, and what its manifest will say."""

    name: str
    out: Path
    run: StageRun | _NoRun
    sections: Mapping[str, BaseModel]
    storage: StorageConfig = _AS_IT_IS
    inputs: dict[str, Any] = field(default_factory=dict)

    def finish(self, metrics: dict[str, float], **counts: Any) -> StageResult:
        """Write metrics and manifest, record the main figures."""
        if not is_main_process():
            return StageResult(metrics, counts.get("skipped"))
        self.run.summary(metrics)
        (self.out / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        config = {name: section.model_dump(mode="json") for name, section in self.sections.items()}
        files = manifest.contents(self.out)
        manifest.write(
            self.out, stage=self.name, config=config, inputs=self.inputs, counts={**counts, **metrics}, files=files
        )
        if self.storage.location is not None and handoff.read(self.out) is None:
            handoff.deliver(self.out, self.storage.location, self.name, files)
        return StageResult(metrics, counts.get("skipped"))

    def skip(self, reason: str) -> StageResult:
        log.warning("%s is skipped: %s", self.name, reason)
        self.run.tags({"rest.skipped": reason})
        return self.finish({}, skipped=reason)

    def add_input(self, name: str, folder: Path | str) -> str:
        """Note an input folder's hash in the manifest; returns the hash, or the source of a model by reference.

        Where it was read from is told MLflow: who reproduces a stage needs its inputs.
        """
        path = Path(folder)
        reference = handoff.read(path)
        self.run.tags({f"{INPUT_TAG}{name}": str(folder) if reference is None else reference.source})
        digest = str(manifest.read(path)["sha256"]) if (path / manifest.FILE_NAME).is_file() else str(folder)
        self.inputs[name] = digest
        return digest

    def add_policy(self, policy: Path | str) -> None:
        """Note the policy that is evaluated; of a trial's policy, how it was trained too."""
        self.add_input("policy", policy)
        if _trial_of(policy) is not None:
            self.inputs[TRAINING] = training_record(manifest.read(Path(policy)))


class _NoRun:
    """The MLflow run of a process that is not the first: nothing is recorded twice."""

    run_id: str | None = None

    def _nothing(self, *_: object, **__: object) -> None:
        return

    metrics = summary = tags = table = figure = artifact = dataset = _nothing

    def wait(self, timeout: float) -> bool:
        return True


@contextmanager
def _stage(
    name: str,
    out: Path,
    tracking: TrackingConfig,
    pipeline_run: str,
    storage_config: StorageConfig = _AS_IT_IS,
    trial: Trial | None = None,
    **sections: BaseModel,
) -> Iterator[_Stage]:
    """Everything around a stage: its folder, its MLflow run (in its trial's), and its errors told in one line."""
    trial_run = None
    if trial is not None:
        sections = {**sections, "trial": trial}
        trial_run = TrialRun(trial.label, {"rest.scheme": trial.name, "rest.seed": str(trial.seed)})
    if not is_main_process():
        with ending_together():
            yield _Stage(name, out, _NoRun(), sections)
        return
    try:
        with storage.disk_errors(out):
            out.mkdir(parents=True, exist_ok=True)
            for stale in (ERROR_FILE, METRICS_FILE, manifest.FILE_NAME, handoff.FILE_NAME):
                (out / stale).unlink(missing_ok=True)
        spool = out.with_name(f"{out.name}.tracking")
        with (
            stage_run(
                tracking, stage=name, pipeline_run=pipeline_run, spool=spool, parameters=sections, trial=trial_run
            ) as run,
            ending_together(lambda failure: _record_failure(name, out, run, failure)),
        ):
            yield _Stage(name, out, run, sections, storage_config)
    except (UserError, Preempted) as error:
        _leave_error(name, out, error)
        raise
    except (OSError, SafetensorError) as error:
        if not storage.disk_is_full(error):
            raise
        place = getattr(error, "filename", None) or out
        full = UserError(f"{place}: no space left on the disk; free some and start the stage again")
        _leave_error(name, out, full)
        raise full from error


@contextmanager
def _errors_left(name: str, out: Path) -> Iterator[None]:
    """Around a stage that runs elsewhere: an error that has left no `error.json` there leaves one here."""
    try:
        yield
    except (UserError, Preempted) as error:
        out.mkdir(parents=True, exist_ok=True)
        _leave_error(name, out, error)
        raise


def _record_failure(name: str, out: Path, run: StageRun, failure: Failure) -> None:
    """Leave another process's failure where this one's own would be."""
    if failure.exit_code == EXIT_USER_ERROR:
        _leave_error(name, out, UserError(failure.message))
    run.fail(failure.message)


def _leave_error(name: str, out: Path, error: UserError | Preempted) -> None:
    exit_code = error.exit_code if isinstance(error, Preempted) else EXIT_USER_ERROR
    report = {"stage": name, "message": str(error), "exit_code": exit_code}
    try:
        (out / ERROR_FILE).write_text(json.dumps(report) + "\n", encoding="utf-8")
    except OSError as problem:  # the folder may be what is wrong; the error itself is raised in any case
        log.warning("%s cannot be written: %s", out / ERROR_FILE, problem)


def preflight(
    *,
    model: ModelConfig,
    data: DataConfig,
    sft: SftConfig,
    rl: RlConfig,
    api_bank: ApiBankConfig,
    registry: RegistryConfig,
    tracking: TrackingConfig,
    storage: StorageConfig,
    surroundings: Surroundings,
    pipeline_run: str,
    out: Path,
) -> StageResult:
    """Check what the run needs of the cluster; all problems come as one `UserError`, a line each."""
    from rest_core.preflight import report, run

    listed = run.checks(
        model=model,
        data=data,
        sft=sft,
        rl=rl,
        api_bank=api_bank,
        registry=registry,
        tracking=tracking,
        storage=storage,
        surroundings=surroundings,
    )
    findings = run.run_checks(listed)
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE_FILE
    if any(one.check == run.MLFLOW for one in report.problems(findings)):
        # Nothing can be recorded there; the log and the artifact have the report.
        page.write_text(report.markdown(findings), encoding="utf-8")
        try:
            report.require_none(findings)
        except UserError as error:
            _leave_error("preflight", out, error)
            raise
    with _stage("preflight", out, tracking, pipeline_run, surroundings=surroundings) as stage:
        page.write_text(report.markdown(findings), encoding="utf-8")
        stage.run.artifact(page)
        figures = {f"preflight/{name}": float(count) for name, count in report.counts(findings).items()}
        stage.run.summary(figures)
        report.require_none(findings)
        return stage.finish(figures)


def prepare_data(
    *,
    model: ModelConfig,
    data: DataConfig,
    api_bank: ApiBankConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    out: Path,
    storage: StorageConfig = _AS_IT_IS,
) -> StageResult:
    """Read, validate, deduplicate, measure and split the training data."""
    from rest_core.data.evaluation_sets import evaluation_questions
    from rest_core.data.prepare import prepare
    from rest_core.data.prompts import template_text
    from rest_core.model.loading import load_tokenizer

    with _stage(
        "prepare-data", out, tracking, pipeline_run, storage, model=model, data=data, api_bank=api_bank
    ) as stage:
        tokenizer = load_tokenizer(model.source, model)
        folder, reason = _api_bank_folder(api_bank)
        if folder is None:
            log.warning("the overlap with API-Bank is not checked: %s", reason)
        report = prepare(
            data,
            style=model.prompt_style,
            tokenizer=tokenizer,
            evaluation_questions=evaluation_questions(folder),
            out=out,
        )
        (out / "prompt_template.txt").write_text(template_text(model.prompt_style) + "\n", encoding="utf-8")
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
        )
        return result


def sft_warmup(
    *,
    model: ModelConfig,
    sft: SftConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    dataset: Path,
    out: Path,
    launch: LaunchConfig = _BY_ITSELF,
    storage: StorageConfig = _AS_IT_IS,
) -> StageResult:
    """Supervised warm-up; the model is passed on by reference where `sft.enabled` is false.

    Runs as one process a GPU, or as many as `launch` says.
    """
    from rest_core.data.store import load_split, to_sample
    from rest_core.model.loading import load_model, load_tokenizer, write_reference
    from rest_core.nodes import launcher
    from rest_core.preflight.gpu import require_memory

    sections = {"model": model, "sft": sft, "tracking": tracking, "storage": storage}
    if sft.enabled and (processes := launcher.processes(launch)) > 1:
        with _errors_left("sft-warmup", out):
            return launcher.run(
                "sft",
                sections,
                {"dataset": dataset},
                pipeline_run=pipeline_run,
                out=out,
                processes=processes,
                sharding=launch.sharding,
            )
    with _stage("sft-warmup", out, tracking, pipeline_run, storage, model=model, sft=sft) as stage:
        digest = stage.add_input("dataset", dataset)
        if not sft.enabled:
            if is_main_process():
                write_reference(out, _absolute(model.source))
            return stage.skip("switched off (sft.enabled=false): cold start")
        require_memory(model.source, model, sft)
        from rest_core.training import sft as training

        dataset = handoff.fetch(dataset)
        samples = [to_sample(row) for row in load_split(dataset, "sft")]
        validation = [to_sample(row) for row in load_split(dataset, "sft_validation")]
        stage.run.dataset("sft", source=str(dataset), digest_sha256=digest, rows=len(samples), context="training")
        tokenizer = load_tokenizer(model.source, model)
        # Leftovers of another attempt are taken up only where data, model and settings are the same.
        described = "/".join([digest, model.model_dump_json(), sft.model_dump_json()])
        trained, metrics = training.train(
            load_model(model.source, model),
            tokenizer,
            samples,
            validation,
            sft,
            model,
            folder=out / "checkpoints" / hashlib.sha256(described.encode()).hexdigest()[:16],
            on_metrics=stage.run.metrics,
        )
        _save(trained, tokenizer, model, out)
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
    launch: LaunchConfig = _BY_ITSELF,
    storage: StorageConfig = _AS_IT_IS,
    trial: Trial | None = None,
) -> StageResult:
    """ResT training, with the weights and the seed of a trial where one is given.

    The policy is passed on where `rl.enabled` is false. Runs as one process a GPU, or as many as `launch` says, or on
    several nodes. Where a storage location is configured and `rl.mirror` is not, checkpoints are mirrored to it, for
    this pipeline run to take up when the stage is retried.
    """
    from rest_core.data.store import load_split, to_sample
    from rest_core.model.chat import encode_prompt
    from rest_core.model.loading import load_model, load_tokenizer, pass_on
    from rest_core.nodes import launcher
    from rest_core.preflight.gpu import require_memory
    from rest_core.response import parse

    if trial is not None:
        rl = trial.applied_to(rl)
    named = None if trial is None else trial.name
    if storage.location is not None and rl.mirror is None:
        rl = rl.model_copy(update={"mirror": f"{handoff.scratch(storage.location, pipeline_run)}/checkpoints"})
    sections = {"model": model, "rl": rl, "tracking": tracking, "storage": storage}
    if rl.enabled and launch.train_job is not None and not is_launched():
        from rest_core.nodes import train_job

        with _errors_left("rest-rl", out):
            return train_job.run(
                sections, dataset, policy, pipeline_run=pipeline_run, out=out, launch=launch, trial=named
            )
    most = 1 if isinstance(rl.engine, VllmEngineConfig) else None  # vLLM in the process: a training of one
    if rl.enabled and (processes := launcher.processes(launch, most)) > 1:
        with _errors_left("rest-rl", out):
            return launcher.run(
                "train",
                sections,
                {"dataset": dataset, "policy": policy},
                pipeline_run=pipeline_run,
                out=out,
                processes=processes,
                sharding=launch.sharding,
                trial=named,
            )
    with _stage("rest-rl", out, tracking, pipeline_run, storage, trial, model=model, rl=rl) as stage:
        digest = stage.add_input("dataset", dataset)
        origin = stage.add_input("policy", policy)
        if not rl.enabled:
            if is_main_process():
                pass_on(policy, out)
            return stage.skip("switched off (rl.enabled=false)")
        require_memory(policy, model, rl)
        from rest_core.training.judging import Task
        from rest_core.training.plots import training_figure
        from rest_core.training.rl import Observer, RlTrainer

        dataset = handoff.fetch(dataset)
        tokenizer = load_tokenizer(policy, model)
        samples = [to_sample(row) for row in load_split(dataset, "rl")]
        held_out = [to_sample(row) for row in load_split(dataset, "rl_validation")] if rl.evaluate_every else []
        tasks, validation = (
            [Task(s.id, encode_prompt(tokenizer, s.prompt), parse(s.reference), s) for s in part]
            for part in (samples, held_out)
        )
        stage.run.dataset("rl", source=str(dataset), digest_sha256=digest, rows=len(tasks), context="training")
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
        )
        metrics = trainer.train()
        history = trainer.folder.history.entries
        if history:
            stage.run.figure(training_figure(history), "training")
            last = next(entry for entry in reversed(history) if "reward/total" in entry)
            metrics |= {f"rl/last/{name}": last[name] for name in ("reward/total", "response/truncated_share")}
        _save(trainer.model, tokenizer, model, out)
        result = stage.finish(metrics)
        if is_main_process():
            shutil.rmtree(trainer.folder.folder, ignore_errors=True)
        return result


def evaluate_bfcl(
    *, model: ModelConfig, bfcl: BfclConfig, tracking: TrackingConfig, pipeline_run: str, policy: Path | str, out: Path
) -> StageResult:
    """BFCL's single-turn categories with the official checkers."""
    trial = _trial_of(policy)
    with _stage("evaluate-bfcl", out, tracking, pipeline_run, trial=trial, model=model, bfcl=bfcl) as stage:
        stage.add_policy(policy)
        if not bfcl.enabled:
            return stage.skip("switched off (bfcl.enabled=false)")
        from rest_core.evaluation.bfcl import run as benchmark

        engine, tokenizer = _evaluation_engine(policy, model)
        with _progress("evaluate-bfcl") as on_progress:
            report = benchmark.evaluate(
                engine,
                tokenizer,
                bfcl,
                style=model.prompt_style,
                model_name=_model_name(policy, model),
                out=out,
                on_progress=on_progress,
            )
        return _finish_evaluation(stage, report, "bfcl", _settings(model, bfcl.generation))


def evaluate_api_bank(
    *,
    model: ModelConfig,
    api_bank: ApiBankConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    policy: Path | str,
    out: Path,
) -> StageResult:
    """API-Bank, levels 1 to 3; skipped, loudly, where its files can neither be found nor downloaded."""
    trial = _trial_of(policy)
    with _stage("evaluate-api-bank", out, tracking, pipeline_run, trial=trial, model=model, api_bank=api_bank) as stage:
        stage.add_policy(policy)
        folder, reason = _api_bank_folder(api_bank)
        if folder is None:
            return stage.skip(reason or "")
        from rest_core.evaluation import api_bank as benchmark

        engine, tokenizer = _evaluation_engine(policy, model)
        with _progress("evaluate-api-bank") as on_progress:
            report = benchmark.evaluate(
                engine,
                tokenizer,
                api_bank,
                folder=folder,
                out=out,
                model_name=_model_name(policy, model),
                on_progress=on_progress,
            )
        return _finish_evaluation(stage, report, "api_bank", _settings(model, api_bank.generation))


def compare_and_register(
    *,
    registry: RegistryConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    dataset: Path,
    policy: Path | str,
    bfcl: Path,
    api_bank: Path,
    out: Path,
) -> StageResult:
    """Register the trained model as `challenger`, compare it with the champion, and close the pipeline's run."""
    from rest_core.tracking import registry as models
    from rest_core.tracking.store import connect

    evaluations = {"bfcl": bfcl, "api_bank": api_bank}
    with _stage("compare-and-register", out, tracking, pipeline_run, registry=registry) as stage:
        for name, folder in {"dataset": dataset, "policy": policy, **evaluations}.items():
            stage.add_input(name, folder)
        checkpoint = Path(policy)
        if not registry.enabled:
            result = stage.skip("switched off (registry.enabled=false)")
        elif not checkpoint.is_dir() or handoff.is_base_model(checkpoint):
            result = stage.skip("nothing was trained: the policy is the base model")
        else:
            facts = _facts(pipeline_run, dataset, checkpoint, evaluations)
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


def report_status(
    *,
    tracking: TrackingConfig,
    storage: StorageConfig,
    launch: LaunchConfig,
    links: Links,
    final: FinalStatus,
    pipeline_run: str,
    out: Path,
) -> StageResult:
    """Say how a run on a cluster ended, where it failed and how to reproduce it; close and remove what it left."""
    from rest_core.status import run

    out.mkdir(parents=True, exist_ok=True)
    outcome = run.conclude(
        tracking, links, final, storage=storage, launch=launch, pipeline_run=pipeline_run, page=out / PAGE_FILE
    )
    metrics = {"run/succeeded": float(outcome.succeeded)}
    (out / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    sections = {"links": links.model_dump(mode="json"), "final": final.model_dump(mode="json")}
    manifest.write(out, stage="report-status", config=sections, inputs={}, counts={**metrics, "outcome": outcome.line})
    return StageResult(metrics)


def _facts(pipeline_run: str, dataset: Path, policy: Path, evaluations: Mapping[str, Path]) -> Any:
    """What the registry and the model card say of a model, read from the folders' manifests."""
    from rest_core.tracking.card import DataFact, ModelFacts

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
        limits=(
            "Evaluated on single-turn tool calls only.",
            f"Prompted in the style {trained['config']['model']['prompt_style']!r}; other prompts give other results.",
        ),
    )


def aggregate(
    *,
    ablation: AblationConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    bfcl: Sequence[Path],
    api_bank: Sequence[Path],
    out: Path,
) -> StageResult:
    """Compare the trials of an ablation, and close the pipeline's run; the report is on that run.

    Args:
        bfcl, api_bank: folders of the trials' evaluations, in any order.
    """
    from rest_core.ablation.collect import collect
    from rest_core.ablation.report import AblationReport

    with _stage("aggregate", out, tracking, pipeline_run, ablation=ablation) as stage:
        evaluations = (*bfcl, *api_bank)
        report = AblationReport(f"Ablation {pipeline_run}", ablation, collect(evaluations))
        stage.inputs["evaluations"] = [manifest.read(folder)["sha256"] for folder in evaluations]
        for note in report.notes:
            log.warning("%s", note)
        for file in report.write(out):
            stage.run.artifact(file, to="pipeline")
        result = stage.finish(report.metrics, trials=len(report.results))
    finish_pipeline(
        tracking,
        pipeline_run=pipeline_run,
        spool=out.with_name(f"{out.name}.finish.tracking"),
        description=report.markdown(),
    )
    return result


def _trial_of(policy: Path | str) -> Trial | None:
    """The trial that has trained a policy."""
    folder = Path(policy)
    if not (folder / manifest.FILE_NAME).is_file():
        return None
    trial = manifest.read(folder)["config"].get("trial")
    return None if trial is None else validate(Trial, trial, where=f"{folder / manifest.FILE_NAME}: trial")


def _api_bank_folder(api_bank: ApiBankConfig) -> tuple[Path | None, str | None]:
    """The folder of API-Bank's files, or None and why there is none."""
    from rest_core.data import published

    if not api_bank.enabled:
        return None, "switched off (api_bank.enabled=false)"
    if api_bank.location is not None and not api_bank.location.startswith(published.PREFIX):
        return storage.fetch(api_bank.location, storage.cache_folder()), None
    try:
        return published.fetch(api_bank.location or f"{published.PREFIX}api-bank"), None
    except published.Unreachable as error:
        return None, str(error)


def _evaluation_engine(policy: Path | str, model: ModelConfig) -> tuple[TransformersEngine, Any]:
    import torch

    from rest_core.algorithm.token_bytes import stop_ids
    from rest_core.memory import keep_freed_memory
    from rest_core.model.loading import load_model, load_tokenizer
    from rest_core.preflight.gpu import require_visible
    from rest_core.rollout.transformers_engine import TransformersEngine

    on_gpu = require_visible() > 0
    keep_freed_memory()
    tokenizer = load_tokenizer(policy, model)
    dtype = getattr(torch, model.dtype)
    loaded = load_model(policy, model, dtype=dtype)
    if on_gpu:
        loaded.to("cuda")
    engine = TransformersEngine.taking_over(
        loaded, dtype=dtype, stop_ids=stop_ids(tokenizer), pad_id=tokenizer.pad_token_id
    )
    return engine, tokenizer


def _finish_evaluation(stage: _Stage, report: Report, name: str, settings: str) -> StageResult:
    out = stage.out
    for file in ("report.md", "report.json", "accuracy.png"):
        stage.run.artifact(out / file)
    stage.run.table(report.rows, "answers")
    ids = hashlib.sha256("\n".join(str(row["id"]) for row in report.rows).encode()).hexdigest()
    measured_on = f"{len(report.rows)} items {ids[:12]}, {settings}"
    stage.run.dataset(name, source=report.title, digest_sha256=ids, rows=len(report.rows), context="evaluation")
    return stage.finish(report.metrics, measured_on=measured_on)


def _settings(model: ModelConfig, generation: GenerationConfig) -> str:
    """What, besides the questions, decides whether two evaluations compare."""
    return (
        f"prompt style {model.prompt_style}, up to {generation.max_prompt_tokens} + {generation.max_response_tokens} "
        f"tokens, bfcl-eval {manifest.package_versions().get('bfcl-eval', 'unknown')}"
    )


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar behind a callback (done, total); quiet where there is no terminal."""
    with tqdm(desc=what, unit="response", disable=None) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield advance


def _save(trained: Any, tokenizer: Any, model: ModelConfig, out: Path) -> None:
    """The flat checkpoint; what was needed to resume goes once it is whole."""
    import torch

    from rest_core.model.loading import save_policy
    from rest_core.training.distributed import gather_weights

    gather_weights(trained)
    if not is_main_process():
        return
    save_policy(trained, tokenizer, out, dtype=getattr(torch, model.dtype))
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _model_name(policy: Path | str, model: ModelConfig) -> str:
    """What reports call the model: its source, and the stage that trained it."""
    folder = Path(policy)
    source = model.source.removeprefix("embedded:").rstrip("/").rsplit("/", 1)[-1]
    if not (folder / manifest.FILE_NAME).is_file():
        return source
    return f"{source}-{manifest.read(folder)['stage']}"


def _absolute(source: str) -> str:
    """A relative folder as an absolute one, so that a reference to it holds from anywhere."""
    return str(Path(source).absolute()) if Path(source).is_dir() else source
