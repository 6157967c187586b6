"""A trained model into the registry, and before the gate to `champion`."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rest_core import manifest
from rest_core.config import GateConfig, RegistryConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.evaluation.evaluation_report import REPORT_FILE, ROWS_FILE
from rest_core.operations import handoff
from rest_core.operations.catalogue import benchmarks
from rest_core.operations.catalogue_entry import EVALUATED
from rest_core.operations.result import METRICS_FILE, REGISTERED_FILE, StageResult
from rest_core.operations.tracking.evaluations import artifact_directory
from rest_core.operations.tracking.runs import finish_pipeline
from rest_core.operations.tracking.store import reason
from rest_core.operations.tracking.tags import MADE_BY_TAG, REGISTERED_TAG
from rest_core.stages.stage import SOURCE_INPUT, StageContext, open_stage, passed_on

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

    from rest_core.operations.tracking.card import Sample

log = logging.getLogger(__name__)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PATIENCE_SECONDS = 300  # for one record, which may be a file of some ten MB


def compare_and_register(
    *,
    registry: RegistryConfig,
    gate: GateConfig,
    tracking: TrackingConfig,
    pipeline_run: str,
    dataset: Path,
    policy: Path | str,
    evaluations: Mapping[str, Mapping[str, Path]],
    out: Path,
) -> StageResult:
    """Register the trained model as `challenger`, put it to the gate, and close the pipeline's run.

    Args:
        evaluations: directories of evaluations by policy and benchmark: of the trained policy; of the warm-up, which is
            what is registered where rl is off; of the base model and the champion, which the gate compares it with.

    Raises:
        UserError: an evaluation is of other weights than those that are registered, or of another base model.
    """
    from rest_core.operations.tracking import logged_models, promotion
    from rest_core.operations.tracking import registry as models
    from rest_core.operations.tracking.store import connect

    with open_stage("compare-and-register", out, tracking, pipeline_run, registry=registry, gate=gate) as stage:
        checkpoint = Path(policy)
        reports = _measured(_reports_on(checkpoint, evaluations))
        for name, folder in {"dataset": dataset, "policy": policy, **reports}.items():
            stage.add_input(name, folder)
        line = "Nothing was registered."
        if not registry.enabled:
            result = stage.skip("switched off (registry.enabled=false)")
        elif not checkpoint.is_dir() or handoff.is_base_model(checkpoint):
            result = stage.skip("nothing was trained: the policy is the base model")
        else:
            others = {name: _measured(evaluations.get(name, {})) for name in ("base", "champion")}
            for benchmark, folder in others["base"].items():
                stage.add_input(f"{benchmark}_base", folder)
            _require_own(checkpoint, reports, others["base"])
            facts = replace(
                _facts(pipeline_run, dataset, checkpoint, reports),
                evaluated=_digest([reports, *others.values()]),
                samples=tuple(_samples(next(iter(reports.values())))) if reports else (),
            )
            _keep(stage, None, reports)
            for name, folders in others.items():
                _keep(stage, name, folders)
            checkpoint = handoff.fetch(checkpoint)
            client = connect(tracking)
            if not stage.run.wait(_PATIENCE_SECONDS) or stage.run.run_id is None:
                raise UserError(
                    f"MLflow has taken none of the stage's records for {_PATIENCE_SECONDS} s; start the stage again"
                )
            logged = _logged_model(client, stage.run.run_id, Path(policy))
            if logged is not None and MADE_BY_TAG in logged.tags:
                facts = replace(facts, training_run=f"{logged.experiment_id}/{logged.tags[MADE_BY_TAG]}")
            made = models.register_model(client, registry, checkpoint=checkpoint, run_id=stage.run.run_id, facts=facts)
            if logged is not None:
                logged_models.note_version(client, logged, made.name, made.version)
            verdict, line = promotion.would_promote(client, made.name, gate, made.version)
            log.info("%s", line)
            models.describe(client, made, facts, line)
            stage.run.tags({REGISTERED_TAG: f"{made.name} version {made.version}", "rest.gate": line})
            record: dict[str, Any] = {"name": made.name, "version": made.version}
            record |= {"source": made.source, "location": made.location}
            record |= {"gate": line, "conditions": verdict.to_json()}
            (out / REGISTERED_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            result = stage.finish({"registry/version": float(made.version)}, registered=record)
    finish_pipeline(
        tracking,
        pipeline_run=pipeline_run,
        spool=out.with_name(f"{out.name}.finish.tracking"),
        description=_description(line, evaluations),
    )
    return result


def _logged_model(client: MlflowClient, run_id: str, policy: Path) -> LoggedModel | None:
    """MLflow's model of the policy: the output of the training's run, if that was recorded."""
    from mlflow.exceptions import MlflowException

    from rest_core.operations.tracking import logged_models

    made = manifest.read(policy)
    identity = made["inputs"]["policy"] if passed_on(policy) else made["sha256"]
    try:
        return logged_models.find(client, client.get_run(run_id).info.experiment_id, str(identity))
    except MlflowException as error:  # a server before 3.0 has none
        log.warning("the version is not linked with a model of the experiment: %s", reason(error))
        return None


def _digest(evaluations: Sequence[Mapping[str, Path]]) -> str:
    """SHA-256 over what evaluations hold."""
    found = {
        f"{number}/{benchmark}": str(manifest.read(folder)["sha256"])
        for number, folders in enumerate(evaluations)
        for benchmark, folder in folders.items()
    }
    return manifest.sha256_contents(found)


def _keep(stage: StageContext, policy: str | None, folders: Mapping[str, Path]) -> None:
    """Record the evaluations of a policy where the gate will look for them."""
    for benchmark, folder in folders.items():
        for file in (REPORT_FILE, ROWS_FILE):
            stage.run.artifact(folder / file, artifact_directory(benchmark, policy))


def _description(line: str, evaluations: Mapping[str, Mapping[str, Path]]) -> str:
    """Of the pipeline's run, as Markdown: the gate's verdict, and each policy's main figures."""
    verdict, _, reason = line.partition(": ")
    parts = [f"**{verdict}**"]
    for benchmark in benchmarks():
        measured = {
            one.title: json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
            for one in EVALUATED
            for name, folder in _measured(evaluations.get(one.name, {})).items()
            if name == benchmark.benchmark
        }
        figures = [one for one in benchmark.figures if any(one.metric in metrics for metrics in measured.values())]
        if figures:
            lines = [f"| {benchmark.benchmark} | {' | '.join(one.label for one in figures)} |"]
            lines.append("|---|" + "---|" * len(figures))
            for title, metrics in measured.items():
                cells = [one.value(metrics) if one.metric in metrics else "" for one in figures]
                lines.append(f"| {title} | {' | '.join(cells)} |")
            parts.append("\n".join(lines))
    if reason:
        parts.append(f"Why: {reason}.")
    parts.append("Question by question: `comparison/` among the artifacts. Values with 95 % intervals.")
    return "\n\n".join(parts) + "\n"


def _reports_on(policy: Path, evaluations: Mapping[str, Mapping[str, Path]]) -> Mapping[str, Path]:
    return evaluations["warmup" if passed_on(policy) and "warmup" in evaluations else "trained"]


def _measured(folders: Mapping[str, Path]) -> dict[str, Path]:
    """The evaluations that were not skipped."""
    return {name: folder for name, folder in folders.items() if "skipped" not in manifest.read(folder)["counts"]}


def _require_own(policy: Path, evaluations: Mapping[str, Path], of_base: Mapping[str, Path]) -> None:
    """Raise `UserError` unless the evaluations are of the policy, and those of its base model of that one."""
    made = manifest.read(policy)
    weights = {made["sha256"]} | ({made["inputs"].get("policy")} if passed_on(policy) else set())
    # A training without a warm-up of a stage's names its model itself; else the configuration does.
    trained_from = str(made["inputs"].get("policy") or "")
    source = made["config"]["model"]["source"] if _SHA256.fullmatch(trained_from) or not trained_from else trained_from
    by_stage = (Path(source) / manifest.FILE_NAME).is_file()
    base = {source, _resolved(source)} | ({manifest.read(Path(source))["sha256"]} if by_stage else set())
    for folders, wanted, title in ((evaluations, weights, f"the policy {policy}"), (of_base, base, source)):
        for folder in folders.values():
            inputs = manifest.read(folder)["inputs"]
            found = inputs.get("policy")
            if not {found, inputs.get(SOURCE_INPUT), _resolved(str(found))} & wanted:
                raise UserError(
                    f"{folder}: is an evaluation of other weights ({str(found)[:80]}) than {title} "
                    f"({', '.join(str(one)[:80] for one in wanted)}); evaluate that one"
                )


def _resolved(source: str) -> str:
    """A folder's path from the root; any other source as it is."""
    return str(Path(source).resolve()) if Path(source).is_dir() else source


def _facts(pipeline_run: str, dataset: Path, policy: Path, evaluations: Mapping[str, Path]) -> Any:
    """What the registry and the model card say of a model, read from the folders' manifests."""
    from rest_core.operations.tracking.card import DataFact, ModelFacts

    data, trained = manifest.read(dataset), manifest.read(policy)
    metrics: dict[str, float] = {}
    measured: dict[str, str] = {}
    for name, folder in evaluations.items():
        metrics |= json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        measured[name] = str(manifest.read(folder)["counts"]["measured_on"])
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


def _samples(evaluation: Path) -> Iterator[Sample]:
    """The first call that is right, the first question answered rightly without one, and the first wrong answer."""
    from rest_core.operations.tracking.card import Sample

    wanted = {"right": True, "right: no call fits": True, "wrong": True}
    with (evaluation / ROWS_FILE).open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            right = row["kind"] is None
            if right and not row["calls"] and not row["well_formed"]:
                continue  # a call that cannot be read is none, and no example
            verdict = ("right" if row["calls"] else "right: no call fits") if right else "wrong"
            if wanted.pop(verdict, False):
                asked = row["question"][-1]["content"] if row["question"] else row["id"]
                answer = json.dumps(row["calls"], ensure_ascii=False) if row["calls"] else row["response"]
                yield Sample(asked, answer, verdict if right else f"wrong: {row['kind']}")
