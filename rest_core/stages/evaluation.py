"""The evaluation stages: a policy answers the questions of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, Unpack

from rest_core import manifest
from rest_core.config import (
    ApiBankConfig,
    BfclConfig,
    EvaluationConfig,
    GenerationConfig,
    ModelConfig,
    PolicyName,
    RegistryConfig,
    Section,
    TrackingConfig,
)
from rest_core.operations import handoff
from rest_core.operations.catalogue import CATALOGUE
from rest_core.operations.catalogue_entry import EVALUATED
from rest_core.operations.result import StageResult
from rest_core.operations.tracking.prompts import prompt_name
from rest_core.operations.tracking.recorder import Measured
from rest_core.progress_bar import ProgressBar
from rest_core.stages.stage import SOURCE_INPUT, StageContext, open_stage, passed_on, trial_of

if TYPE_CHECKING:
    from rest_core.evaluation.benchmark import Benchmark
    from rest_core.evaluation.policy import Policy


class Common(TypedDict):
    """The arguments of every evaluation, besides the section of its benchmark."""

    model: ModelConfig
    evaluation: EvaluationConfig
    tracking: TrackingConfig
    pipeline_run: str
    out: Path
    policy: NotRequired[Path | str]
    """A directory, a hub id, or openai:MODEL@URL; absent for the base model and the champion."""
    registry: NotRequired[RegistryConfig]
    """The registry whose champion is evaluated; absent for every other policy."""
    evaluated: NotRequired[PolicyName]
    """Which of the pipeline's policies this is; absent in `rest eval-…`."""


class Unavailable(Exception):
    """There are no questions, or no policy to answer them: the stage is skipped, and the message says why."""

    def __init__(self, reason: str, *, expected: bool = False) -> None:
        super().__init__(reason)
        self.expected = expected


def evaluate_bfcl(*, bfcl: BfclConfig, **common: Unpack[Common]) -> StageResult:
    """BFCL with the official checkers: single calls, and dialogues."""

    def benchmark() -> Benchmark:
        from rest_core.evaluation.bfcl.benchmark import Bfcl

        return Bfcl(bfcl)

    return evaluate_policy("bfcl", bfcl, benchmark, **common)


def evaluate_api_bank(*, api_bank: ApiBankConfig, **common: Unpack[Common]) -> StageResult:
    """API-Bank, levels 1 to 3; skipped, loudly, where its files can neither be found nor downloaded."""

    def benchmark() -> Benchmark:
        from rest_core.data.evaluation_sets import api_bank_folder

        folder, reason = api_bank_folder(api_bank)
        if folder is None:
            raise Unavailable(reason or "")
        from rest_core.evaluation.api_bank import ApiBank

        return ApiBank(api_bank, folder)

    return evaluate_policy("api_bank", api_bank, benchmark, **common)


def evaluate_policy(
    name: str, section: Section, make_benchmark: Callable[[], Benchmark], **common: Unpack[Common]
) -> StageResult:
    """Evaluate a policy on a benchmark, or say why that is not done.

    Args:
        name: of the benchmark and its section.
        section: its settings.
        make_benchmark: raises `Unavailable` where there are no questions.
        common: see `Common`.
    """
    evaluated, policy = common.get("evaluated"), common.get("policy")
    stage_name = f"evaluate-{name.replace('_', '-')}" + (f"-{evaluated}" if evaluated else "")
    sections: dict[str, Any] = {"model": common["model"], "evaluation": common["evaluation"], name: section}
    if "registry" in common:
        sections["registry"] = common["registry"]
    trial = None if policy is None else trial_of(policy)
    off = _off(name, section, common["evaluation"], evaluated, policy)
    with open_stage(
        stage_name,
        common["out"],
        common["tracking"],
        common["pipeline_run"],
        trial=trial,
        off=off is not None,
        **sections,
    ) as stage:
        if evaluated not in (None, "trained"):
            stage.on_parent = ()  # its figures would take the place of the trained policy's
        if policy is not None:
            stage.add_policy(policy)
        if off is not None:
            return stage.skip(off)
        try:
            benchmark = make_benchmark()
            limits = benchmark.generation.model_copy(update={"max_prompt_tokens": benchmark.longest_prompt})
            answering = _policy(stage, limits, common)
        except Unavailable as missing:
            return stage.skip(str(missing), quiet=missing.expected)
        return _evaluate(stage, benchmark, answering, _identity(stage, answering, common))


def _off(
    name: str,
    section: Section,
    evaluation: EvaluationConfig,
    evaluated: PolicyName | None,
    policy: Path | str | None,
) -> str | None:
    """Why there is nothing to evaluate, as far as the configuration and the policy say."""
    if not section.enabled:  # type: ignore[attr-defined]
        return f"switched off ({name}.enabled=false)"
    if evaluated is None:
        return None
    if evaluated not in evaluation.policies:
        return f"switched off (evaluation.policies does not name {evaluated})"
    one = next(one for one in EVALUATED if one.name == evaluated)
    if policy is not None and passed_on(policy):
        name, title = ("base", "base model") if handoff.is_base_model(Path(policy)) else ("warmup", "warm-up")
        rest = "is evaluated as such" if name in evaluation.policies else f"evaluation.policies leaves out ({name})"
        return f"{one.switch} is off: the policy is the {title}, which {rest}"
    return None


def _policy(stage: StageContext, limits: GenerationConfig, common: Common) -> Policy:
    """The policy that answers; the base model and the champion reuse their answers in earlier runs."""
    from rest_core.evaluation.openai_policy import PREFIX
    from rest_core.stages import policies

    model, evaluation, policy = common["model"], common["evaluation"], common.get("policy")
    if policy is not None:
        if str(policy).startswith(PREFIX):
            return policies.remote(str(policy), model, evaluation, stage.out / "answers")
        return policies.local(_model_name(policy, model), policy, model, evaluation, limits)
    if (registry := common.get("registry")) is None:
        stage.add_input("policy", model.source)
        stage.inputs[SOURCE_INPUT] = model.source
        base = policies.local(_model_name(model.source, model), model.source, model, evaluation, limits)
        return policies.remembering(base, model.source, model, evaluation)
    from rest_core.operations.tracking import versions

    if not registry.enabled:
        raise Unavailable("switched off (registry.enabled=false)", expected=True)
    champion = versions.champion(common["tracking"], registry)
    if champion is None:
        raise Unavailable(f"{registry.name} has no champion yet", expected=True)
    stage.add_input("policy", champion.location)
    best = policies.local(champion.title, champion.fetch(), model, evaluation, limits)
    return policies.remembering(best, champion.location, model, evaluation, champion.identity)


def _identity(stage: StageContext, policy: Policy, common: Common) -> str:
    """What the policy is among MLflow's models: a version, a checkpoint's hash, or where the model was taken from."""
    if "registry" in common:
        return policy.name
    given = common.get("policy")
    if given is not None and passed_on(given):
        return str(manifest.read(Path(given))["inputs"]["policy"])
    if given is not None and (Path(given) / manifest.FILE_NAME).is_file():
        return str(stage.inputs["policy"])
    model = common["model"]
    source = str(given or model.source)
    at = str(Path(source).resolve()) if Path(source).is_dir() else source
    started = "" if model.init == "pretrained" else f" ({model.init})"
    return f"{at}{f'@{model.revision}' if model.revision else ''}{started}"


def _evaluate(stage: StageContext, benchmark: Benchmark, policy: Policy, identity: str) -> StageResult:
    """Evaluate the policy; the report, its table and its figures go to the stage's run.

    Args:
        identity: of the policy among MLflow's models.
    """
    from rest_core.evaluation.evaluate import evaluate

    out = stage.out
    with _progress(stage.name) as on_progress:
        report = evaluate(benchmark, policy, out=out, on_progress=on_progress)
    for file in ("report.md", "report.json", "rows.jsonl", "accuracy.png"):
        stage.run.artifact(out / file)
    stage.run.table(report.rows, "answers")
    stage.run.answers(report.rows, benchmark.rules)
    measured = report.measured
    if report.template is not None:
        stage.run.prompt(prompt_name(measured.condition), report.template)
    stage.measured = Measured(
        identity=identity,
        name=report.model,
        dataset=benchmark.name,
        digest_sha256=measured.items,
        metrics=tuple(figure.metric for figure in CATALOGUE[stage.name].figures),
    )
    limits = ", ".join(f"{name} {value}" for name, value in measured.limits.items())
    measured_on = (
        f"{len(report.rows)} items {measured.items[:12]}, {measured.condition}, {limits}, checked by {measured.checker}"
    )
    stage.run.dataset(
        benchmark.name, source=report.title, digest_sha256=measured.items, rows=len(report.rows), context="evaluation"
    )
    return stage.finish(report.metrics, measured_on=measured_on)


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar behind a callback (done, total)."""
    with ProgressBar(desc=what, unit="response") as bar:

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
