"""The evaluation stages: a policy answers the questions of a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from rest_core import manifest
from rest_core.config import ApiBankConfig, BfclConfig, GenerationConfig, ModelConfig, TrackingConfig
from rest_core.operations.result import StageResult
from rest_core.stages.stage import StageContext, open_stage, trial_of

if TYPE_CHECKING:
    from rest_core.evaluation.benchmark import Benchmark
    from rest_core.evaluation.local_policy import LocalPolicy


def evaluate_bfcl(
    *, model: ModelConfig, bfcl: BfclConfig, tracking: TrackingConfig, pipeline_run: str, policy: Path | str, out: Path
) -> StageResult:
    """BFCL's single-turn categories with the official checkers."""
    trial = trial_of(policy)
    with open_stage("evaluate-bfcl", out, tracking, pipeline_run, trial=trial, model=model, bfcl=bfcl) as stage:
        stage.add_policy(policy)
        if not bfcl.enabled:
            return stage.skip("switched off (bfcl.enabled=false)")
        from rest_core.evaluation.bfcl.benchmark import Bfcl

        return _evaluate(stage, Bfcl(bfcl), policy, model)


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
    from rest_core.data.evaluation_sets import api_bank_folder

    trial = trial_of(policy)
    with open_stage(
        "evaluate-api-bank", out, tracking, pipeline_run, trial=trial, model=model, api_bank=api_bank
    ) as stage:
        stage.add_policy(policy)
        folder, reason = api_bank_folder(api_bank)
        if folder is None:
            return stage.skip(reason or "")
        from rest_core.evaluation.api_bank import ApiBank

        return _evaluate(stage, ApiBank(api_bank, folder), policy, model)


def _evaluate(stage: StageContext, benchmark: Benchmark, policy: Path | str, model: ModelConfig) -> StageResult:
    """Answer the benchmark's questions; the report, its table and its figures go to the stage's run."""
    from rest_core.evaluation.evaluate import evaluate

    out = stage.out
    with _progress(stage.name) as on_progress:
        report = evaluate(benchmark, _load(policy, model), out=out, on_progress=on_progress)
    for file in ("report.md", "report.json", "rows.jsonl", "accuracy.png"):
        stage.run.artifact(out / file)
    stage.run.table(report.rows, "answers")
    ids = hashlib.sha256("\n".join(str(row["id"]) for row in report.rows).encode()).hexdigest()
    measured_on = f"{len(report.rows)} items {ids[:12]}, {_settings(model, benchmark.generation)}"
    stage.run.dataset(
        benchmark.name, source=report.title, digest_sha256=ids, rows=len(report.rows), context="evaluation"
    )
    return stage.finish(report.metrics, measured_on=measured_on)


def _load(source: Path | str, model: ModelConfig) -> LocalPolicy:
    from rest_core.evaluation.local_policy import LocalPolicy
    from rest_core.memory import keep_freed_memory
    from rest_core.model.loading import load_model, load_tokenizer
    from rest_core.model.precision import compute_dtype
    from rest_core.operations import policies
    from rest_core.operations.preflight.gpu import require_visible
    from rest_core.rollout.transformers_engine import TransformersEngine
    from rest_core.token_bytes import stop_ids

    on_gpu = require_visible() > 0
    keep_freed_memory()
    policy = policies.fetched(source)
    tokenizer = load_tokenizer(policy, model)
    dtype = compute_dtype(model)
    loaded = load_model(policy, model, dtype=dtype)
    if on_gpu:
        loaded.to("cuda")
    engine = TransformersEngine.taking_over(
        loaded, dtype=dtype, stop_ids=stop_ids(tokenizer), pad_id=tokenizer.pad_token_id
    )
    return LocalPolicy(_model_name(source, model), engine, tokenizer, model.prompt_style)


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


def _model_name(policy: Path | str, model: ModelConfig) -> str:
    """What reports call the model: its source, and the stage that trained it."""
    folder = Path(policy)
    source = model.source.removeprefix("embedded:").rstrip("/").rsplit("/", 1)[-1]
    if not (folder / manifest.FILE_NAME).is_file():
        return source
    return f"{source}-{manifest.read(folder)['stage']}"
