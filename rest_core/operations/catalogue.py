"""The catalogue of stages: one entry says everything that pipelines, components, platform and commands need to know.

Adding a stage is adding an entry here and the function that it names (docs/developing.md has an example). Nothing here
imports a stage, so that launchers and reports read the catalogue without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rest_core.config import Config, PolicyName
from rest_core.operations.catalogue_entry import EVALUATED, SOURCES, Command, Figure, Parameter, Part, Stage

SECTIONS = tuple(name for name in Config.model_fields if name != "profile")
"""The sections of the configuration, each a parameter of the pipelines."""


_SETTINGS = "rest_core.ablation.settings"

ENTRIES = (
    Stage(
        name="preflight",
        function="rest_core.stages.cluster:preflight",
        summary="Check what the run needs of the cluster, before a GPU is taken; all problems in one report.",
        part="cluster",
        sections=(
            "model",
            "data",
            "sft",
            "rl",
            "evaluation",
            "bfcl",
            "api_bank",
            "registry",
            "gate",
            "tracking",
            "storage",
            "launch",
        ),
        parameters=(
            ("surroundings", Parameter("rest_core.operations.preflight.surroundings:Surroundings")),
            ("ablation", Parameter(f"{_SETTINGS}:AblationConfig", optional=True)),
            ("trials", Parameter(f"{_SETTINGS}:Trial", annotation="list", optional=True)),
        ),
        output="report",
        contents="report.md",
        page=("report.md", "Markdown"),
        image="train",
        looks_at=SOURCES,
    ),
    Stage(
        name="prepare-data",
        function="rest_core.stages.data:prepare_data",
        summary="Read, validate, deduplicate and split the training data.",
        part="shared",
        sections=("model", "data", "api_bank", "tracking", "storage"),
        output="dataset",
        kind="Dataset",
        contents="the splits sft, sft_validation, rl and rl_validation, report.json, prompt_template.txt",
        image="evaluate",
        cached=True,
        command=Command(
            "prepare",
            examples=(
                "--out runs/data",
                "--data my_calls.jsonl --set data.on_invalid=stop --out runs/data",
                "--data 's3://bucket/toolace/*.json' --set data.max_prompt_tokens=1024 --out runs/data",
            ),
            options=("api_bank", "data"),
        ),
        figures=(
            Figure("read", "data/read", ",.0f"),
            Figure("dropped", "data/dropped", ",.0f"),
            Figure("for sft", "data/sft", ",.0f"),
            Figure("for rl", "data/rl", ",.0f"),
        ),
    ),
    Stage(
        name="sft-warmup",
        function="rest_core.stages.training:sft_warmup",
        summary="Warm the model up by supervised fine-tuning.",
        part="shared",
        sections=("model", "sft", "tracking", "launch", "storage"),
        inputs=(("dataset", "prepare-data"),),
        output="policy",
        kind="Model",
        contents="a Hugging Face checkpoint, or a reference to the base model where sft is off",
        image="train",
        gpu=True,
        switch="sft",
        command=Command(
            "sft",
            examples=(
                "--dataset runs/data --out runs/sft",
                "--dataset runs/data --set sft.epochs=1 --set 'sft.lora={r: 8}' --out runs/sft",
            ),
        ),
        figures=(
            Figure("loss before", "sft/validation_loss_before", ".3f"),
            Figure("after", "sft/validation_loss_after", ".3f"),
        ),
    ),
    Stage(
        name="rest-rl",
        function="rest_core.stages.training:rest_rl",
        summary="Train a policy with ResT.",
        part="trial",
        sections=("model", "rl", "tracking", "launch", "storage"),
        inputs=(("dataset", "prepare-data"), ("policy", "sft-warmup")),
        parameters=(("trial", Parameter(f"{_SETTINGS}:Trial", optional=True)),),
        output="trained",
        kind="Model",
        contents="a Hugging Face checkpoint, or the policy as it came where rl is off",
        image="train",
        gpu=True,
        switch="rl",
        command=Command(
            "train",
            details="Run it again with the same --out to resume.",
            examples=(
                "--dataset runs/data --policy runs/sft --out runs/rl",
                "--dataset runs/data --policy Qwen/Qwen3-1.7B --out runs/cold",
                "--dataset runs/data --policy runs/sft --set 'rl.weights={scheme: uniform}' --out runs/grpo",
            ),
            options=("trial",),
        ),
        figures=(
            Figure("reward before", "reward/before", "+.3f", main=True),
            Figure("after", "reward/after", "+.3f", main=True),
            Figure("change", "reward/change", "+.3f", main=True),
            Figure("tokens/s", "rl/tokens_per_second", ".0f"),
        ),
    ),
    Stage(
        name="evaluate-bfcl",
        function="rest_core.stages.evaluation:evaluate_bfcl",
        summary="Evaluate a policy on BFCL, with the official checkers.",
        part="trial",
        sections=("model", "evaluation", "bfcl", "tracking"),
        inputs=(("policy", "rest-rl"),),
        output="report",
        contents="report.md, report.json, accuracy.png, and rows.jsonl with each answer",
        image="evaluate",
        gpu=True,
        cached=True,
        switch="bfcl",
        benchmark="bfcl",
        command=Command(
            "eval-bfcl",
            examples=(
                "--policy runs/rl --out runs/bfcl",
                "--policy runs/rl --set 'bfcl.categories=[simple_python]' --out runs/bfcl",
                "--policy Qwen/Qwen3-1.7B --set bfcl.limit_per_category=20 --out runs/base",
                "--policy openai:gpt-4o@https://api.openai.com/v1 --out runs/gpt-4o",
            ),
        ),
        figures=(
            Figure("call accuracy", "bfcl/call_accuracy", main=True),
            Figure("irrelevance", "bfcl/irrelevance_accuracy", main=True),
            Figure("multi-turn", "bfcl/multi_turn_accuracy", main=True),
            Figure("memory", "bfcl/memory_accuracy"),
        ),
    ),
    Stage(
        name="evaluate-api-bank",
        function="rest_core.stages.evaluation:evaluate_api_bank",
        summary="Evaluate a policy on API-Bank, levels 1 to 3.",
        part="trial",
        sections=("model", "evaluation", "api_bank", "tracking"),
        inputs=(("policy", "rest-rl"),),
        output="report",
        contents="report.md, report.json, accuracy.png, and rows.jsonl with each answer",
        image="evaluate",
        gpu=True,
        cached=True,
        switch="api_bank",
        benchmark="api_bank",
        command=Command(
            "eval-api-bank",
            examples=("--policy runs/rl --api-bank data/api-bank --out runs/api-bank",),
            options=("api_bank",),
        ),
        figures=(
            Figure("soft", "api_bank/overall_soft", main=True),
            Figure("strict", "api_bank/overall_strict", main=True),
        ),
    ),
    Stage(
        name="compare-policies",
        function="rest_core.stages.comparison:compare_policies",
        summary="Compare base model, warm-up, trained policy and champion; KFP's pages show the report.",
        part="single",
        sections=("tracking",),
        reads_evaluations=("base", "warmup", "trained", "champion"),
        output="report",
        contents="comparison.html, overview.json, and a directory a benchmark with its comparison",
        page=("comparison.html", "HTML"),
        figures=(Figure("call accuracy, ResT - base", "comparison/bfcl/call_accuracy/ResT - base/difference", "+.1%"),),
    ),
    Stage(
        name="compare-and-register",
        function="rest_core.stages.registration:compare_and_register",
        summary="Register a policy in MLflow as `challenger` and put it to the gate before `champion`.",
        part="single",
        sections=("registry", "gate", "tracking"),
        inputs=(("dataset", "prepare-data"), ("policy", "rest-rl")),
        reads_evaluations=("base", "warmup", "trained", "champion"),
        after=("compare-policies",),
        output="record",
        contents="registered.json: name, version, and what the gate says of it",
        switch="registry",
        command=Command(
            "register",
            details="Its evaluations and lineage go with it, and whether it would become champion.",
            examples=("--dataset runs/data --policy runs/rl --bfcl runs/bfcl --bfcl-base runs/base --out runs/record",),
        ),
        figures=(Figure("version", "registry/version", ".0f"),),
    ),
    Stage(
        name="aggregate",
        function="rest_core.stages.comparison:aggregate",
        summary="Compare the trials of an ablation; KFP's pages show the report.",
        part="ablation",
        sections=("tracking",),
        parameters=(("ablation", Parameter(f"{_SETTINGS}:AblationConfig")),),
        reads_evaluations=("trained",),
        output="report",
        contents="report.json, trials.csv, comparison.png, report.html",
        page=("report.html", "HTML"),
    ),
    Stage(
        name="deploy-model",
        function="rest_core.stages.serving:deploy_model",
        summary="Serve a version of the registered model with KServe, where platform.yaml says so.",
        part="serving",
        sections=("registry", "tracking"),
        parameters=(("service", Parameter("rest_core.operations.kserve:Service")),),
        after=("compare-and-register",),
        output="record",
        contents="inference-service.yaml, as it was applied",
        switch="registry",
    ),
    Stage(
        name="report-status",
        function="rest_core.stages.cluster:report_status",
        summary="Say how the run ended, where it failed and how to reproduce it; close what it left open.",
        part="cluster",
        sections=("tracking", "storage", "launch"),
        parameters=(
            ("links", Parameter("rest_core.operations.status.final:Links")),
            (
                "final",
                Parameter("rest_core.operations.status.final:FinalStatus", annotation="dsl.PipelineTaskFinalStatus"),
            ),
        ),
        output="report",
        contents="report.md",
        page=("report.md", "Markdown"),
    ),
)


def _of_each_policy(entry: Stage) -> Iterator[Stage]:
    """The evaluations of an entry, one per policy; any other entry unchanged."""
    if entry.benchmark is None:
        yield entry
        return
    for one in EVALUATED:
        yield replace(
            entry,
            name=f"{entry.name}-{one.name}",
            part=one.part,
            sections=(*entry.sections, *one.sections),
            inputs=() if one.stage is None else (("policy", one.stage),),
            after=("prepare-data",) if one.stage is None else (),  # wrong data is to be reported first
            # Of the others the policy is made anew in each run, or may be another one by then (champion).
            cached=entry.cached and one.name == "base",
            evaluated=one,
        )


STAGES = tuple(stage for entry in ENTRIES for stage in _of_each_policy(entry))
"""The stages of the pipelines: each evaluation occurs once per policy."""

CATALOGUE = {stage.name: stage for stage in (*ENTRIES, *STAGES)}


def in_parts(*parts: Part) -> tuple[Stage, ...]:
    """The stages of these parts, in their order."""
    return tuple(stage for stage in STAGES if stage.part in parts)


def benchmarks() -> tuple[Stage, ...]:
    """The entries that evaluate a policy on a benchmark."""
    return tuple(entry for entry in ENTRIES if entry.benchmark is not None)


def evaluations(policy: PolicyName) -> tuple[Stage, ...]:
    """The stages that evaluate a policy, one a benchmark."""
    return tuple(stage for stage in STAGES if stage.evaluated is not None and stage.evaluated.name == policy)


PIPELINE = in_parts("shared", "trial", "single")
"""The stages of a pipeline with one training, in their order."""


def inputs_of(stage: Stage) -> dict[str, Stage]:
    """The stage whose output each input of a stage is, by parameter; evaluations that it reads are included."""
    found = {parameter: CATALOGUE[producer] for parameter, producer in stage.inputs}
    return found | {f"{one.benchmark}_{name}": one for name in stage.reads_evaluations for one in evaluations(name)}
