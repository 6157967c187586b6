"""`rest prepare | sft | train | eval-bfcl | eval-api-bank | register`: the pipeline's stages by hand.

Each command calls the function of a stage with sections of the configuration and folders, as its component does in the
pipeline; the catalogue says which.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any, Literal

import click

from pipelines.cli.options import api_bank_option, configuration, configured, data_option, with_options
from rest_core.operations.catalogue import CATALOGUE, ENTRIES, evaluations
from rest_core.operations.catalogue_entry import Stage

_OPTIONS = {
    "api_bank": api_bank_option,
    "data": data_option,
    "trial": click.option(
        "--trial",
        metavar="NAME[=SETTING,…]",
        help="Name of the scheme in a comparison (`rest aggregate`) that this training is part of; then the settings "
        "of rl besides weights and seed in which it differs: dr-grpo=advantage_std,loss.aggregation.",
    ),
}
_OUTPUT = (
    click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        metavar="DIR",
        help="Folder that the stage fills.",
    ),
    click.option(
        "--run-name", metavar="NAME", help="Pipeline run in MLflow that the stage joins; default: one of its own."
    ),
)


def _command(stage: Stage) -> click.Command:
    """The command of a stage, with one option for each folder that it reads."""
    command = stage.command
    assert command is not None

    def run(profile: str, overrides: tuple[str, ...], out: Path, run_name: str | None, **options: Any) -> None:
        folders = {name: options.pop(name) for name in _folders(stage)}
        trial = options.pop("trial", None)
        config = configuration(profile, overrides, **options)
        from rest_core import logs
        from rest_core.operations.tracking.runs import OpenPipeline, new_pipeline_run
        from rest_core.processes import is_main_process

        # Of several processes the first one alone speaks.
        logs.configure(sys.stderr, level=logging.WARNING if is_main_process() else logging.ERROR)
        pipeline_run = run_name or new_pipeline_run(out.absolute().name)
        keywords: dict[str, Any] = {name: getattr(config, name) for name in stage.sections}
        if trial is not None:
            from rest_core.ablation.settings import as_trained

            keywords["trial"] = as_trained(trial, config.rl)
        # A policy may be a hub id or a URI, which are no paths.
        inputs = {name: value if name == "policy" else _local(value) for name, value in folders.items() if value}
        if stage.reads_evaluations:
            keywords["evaluations"] = {
                policy: {one: inputs.pop(option) for option, one in _reports(policy).items() if option in inputs}
                for policy in ("trained", "base")
            }
        parent = None
        if is_main_process() and run_name is None and stage.part != "single":  # which closes its run itself
            spool = out.with_name(f"{out.name}.finish.tracking")
            parent = OpenPipeline(config.tracking, pipeline_run=pipeline_run, spool=spool)
        try:
            result = stage.load()(**keywords, **inputs, pipeline_run=pipeline_run, out=out)
        except BaseException:
            if parent is not None:
                parent.discard()
            raise
        if not is_main_process():
            return
        if parent is not None:
            parent.end("FINISHED")
        for figure, value in sorted(result.metrics.items()):
            click.echo(f"{figure:40} {value:.6g}")
        for note in result.notes:
            click.echo(note)
        click.echo(f"{command.name}: {f'skipped, {result.skipped}' if result.skipped else 'done'}; see {out}")

    options = [_OPTIONS[name] for name in command.options]
    options += [
        click.option(f"--{name.replace('_', '-')}", name, required=name in dict(stage.inputs), metavar="DIR", help=text)
        for name, text in _folders(stage).items()
    ]
    examples = "\n".join(f"  rest {command.name} {example}" for example in command.examples)
    text = "\n\n".join(part for part in (stage.summary, command.details, f"\b\nExamples:\n{examples}") if part)
    return click.command(command.name, help=text)(configured(with_options(run, [*options, *_OUTPUT])))


def _folders(stage: Stage) -> dict[str, str]:
    """The folders that a stage reads, and what the help says of each."""
    texts = {}
    for name, producer in stage.inputs:
        command = CATALOGUE[producer].command
        assert command is not None
        texts[name] = f"Folder that `rest {command.name}` made."
    if stage.reads_evaluations:  # by hand those that the gate needs
        texts |= {option: f"Evaluation of the policy on {one}." for option, one in _reports("trained").items()}
        texts |= {option: f"Evaluation of its base model on {one}." for option, one in _reports("base").items()}
    if "dataset" in texts:
        texts["dataset"] = "Folder that `rest prepare` made; like the others it may be an s3:// URI."
    if "policy" in texts:
        texts["policy"] = "Folder that `rest sft` or `rest train` made, or a model (hub id, folder, s3:// URI)."
        if stage.benchmark is not None:
            texts["policy"] += " Or openai:MODEL@URL, behind an OpenAI-compatible endpoint; the key is OPENAI_API_KEY."
    return texts


def _reports(policy: Literal["trained", "base"]) -> dict[str, str]:
    """The benchmark of each option that names an evaluation."""
    suffix = "" if policy == "trained" else f"_{policy}"
    return {f"{one.benchmark}{suffix}": str(one.benchmark) for one in evaluations(policy)}


def _local(folder: str) -> Path:
    """The folder of a stage's output; one that lies in S3 is downloaded."""
    from rest_core import storage

    return storage.fetch(folder, storage.cache_folder()) if storage.is_s3(folder) else Path(folder)


COMMANDS = tuple(_command(stage) for stage in ENTRIES if stage.command is not None)
