"""`rest prepare | sft | train | eval-bfcl | eval-api-bank | register`: the pipeline's stages by hand.

Each command calls one function of `rest_core.stages` with sections of the configuration and folders, as the stage's
component does in the pipeline.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from pipelines.cli.options import api_bank_option, configuration, configured, data_option

_FOLDERS = {
    "dataset": "Folder that `rest prepare` made; like the others it may be an s3:// URI.",
    "policy": "Folder that `rest sft` or `rest train` made, or a model (hub id, folder, s3:// URI).",
    "bfcl": "Folder that `rest eval-bfcl` made.",
    "api_bank": "Folder that `rest eval-api-bank` made.",
}


def _stage_command(
    name: str,
    stage: str,
    *,
    sections: tuple[str, ...],
    folders: tuple[str, ...] = (),
    inputs: tuple[Any, ...] = (),
    help: str,
) -> click.Command:
    """The command `name` of the function `stage`, with one option for each folder that it reads."""

    def run(profile: str, overrides: tuple[str, ...], out: Path, run_name: str | None, **options: Any) -> None:
        given = {folder: options.pop(folder) for folder in folders}
        trial = options.pop("trial", None)
        config = configuration(profile, overrides, **options)
        from rest_core import logs, stages
        from rest_core.ablation.settings import as_trained
        from rest_core.operations.tracking.runs import finish_pipeline, new_pipeline_run
        from rest_core.processes import is_main_process

        # Of several processes the first one alone speaks.
        logs.configure(sys.stderr, level=logging.WARNING if is_main_process() else logging.ERROR)
        pipeline_run = run_name or new_pipeline_run(out.absolute().name)
        result = getattr(stages, stage)(
            **{section: getattr(config, section) for section in sections},
            **({} if trial is None else {"trial": as_trained(trial, config.rl)}),
            # A policy may be a hub id or a URI, which are no paths.
            **{folder: value if folder == "policy" else _local(value) for folder, value in given.items()},
            pipeline_run=pipeline_run,
            out=out,
        )
        if not is_main_process():
            return
        if run_name is None and stage != "compare_and_register":  # which closes its run itself
            spool = out.with_name(f"{out.name}.finish.tracking")
            finish_pipeline(config.tracking, pipeline_run=pipeline_run, spool=spool)
        for figure, value in sorted(result.metrics.items()):
            click.echo(f"{figure:40} {value:.6g}")
        for note in result.notes:
            click.echo(note)
        click.echo(f"{name}: {f'skipped, {result.skipped}' if result.skipped else 'done'}; see {out}")

    run = click.option(
        "--run-name", metavar="NAME", help="Pipeline run in MLflow that the stage joins; default: one of its own."
    )(run)
    run = click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        required=True,
        metavar="DIR",
        help="Folder that the stage fills.",
    )(run)
    for folder in reversed(folders):
        run = click.option(
            f"--{folder.replace('_', '-')}", folder, required=True, metavar="DIR", help=_FOLDERS[folder]
        )(run)
    for option in inputs:
        run = option(run)
    return click.command(name, help=help)(configured(run))


def _local(folder: str) -> Path:
    """The folder of a stage's output; one that lies in S3 is downloaded."""
    from rest_core import storage

    return storage.fetch(folder, storage.cache_folder()) if storage.is_s3(folder) else Path(folder)


COMMANDS = (
    _stage_command(
        "prepare",
        "prepare_data",
        sections=("model", "data", "api_bank", "tracking", "storage"),
        inputs=(api_bank_option, data_option),
        help="""Make a dataset folder from tool-use data.

    Reads, validates, deduplicates and splits.

    \b
    Examples:
      rest prepare --out runs/data
      rest prepare --data my_calls.jsonl --set data.on_invalid=stop --out runs/data
      rest prepare --data 's3://bucket/toolace/*.json' --set data.max_prompt_tokens=1024 --out runs/data""",
    ),
    _stage_command(
        "sft",
        "sft_warmup",
        sections=("model", "sft", "tracking", "launch", "storage"),
        folders=("dataset",),
        help="""Warm the model up by supervised fine-tuning.

    \b
    Examples:
      rest sft --dataset runs/data --out runs/sft
      rest sft --dataset runs/data --set sft.epochs=1 --set 'sft.lora={r: 8}' --out runs/sft""",
    ),
    _stage_command(
        "train",
        "rest_rl",
        sections=("model", "rl", "tracking", "launch", "storage"),
        folders=("dataset", "policy"),
        inputs=(
            click.option(
                "--trial",
                metavar="NAME[=SETTING,…]",
                help="Name of the scheme in a comparison (`rest aggregate`) that this training is part of; then the "
                "settings of rl besides weights and seed in which it differs: dr-grpo=advantage_std,loss.aggregation.",
            ),
        ),
        help="""Train a policy with ResT.

    Run it again with the same --out to resume.

    \b
    Examples:
      rest train --dataset runs/data --policy runs/sft --out runs/rl
      rest train --dataset runs/data --policy Qwen/Qwen3-1.7B --out runs/cold
      rest train --dataset runs/data --policy runs/sft --set 'rl.weights={scheme: uniform}' --out runs/grpo""",
    ),
    _stage_command(
        "eval-bfcl",
        "evaluate_bfcl",
        sections=("model", "bfcl", "tracking"),
        folders=("policy",),
        help="""Evaluate a policy on BFCL.

    The single-turn categories, with the official checker.

    \b
    Examples:
      rest eval-bfcl --policy runs/rl --out runs/bfcl
      rest eval-bfcl --policy runs/rl --set 'bfcl.categories=[simple_python]' --out runs/bfcl
      rest eval-bfcl --policy Qwen/Qwen3-1.7B --set bfcl.limit_per_category=20 --out runs/base""",
    ),
    _stage_command(
        "eval-api-bank",
        "evaluate_api_bank",
        sections=("model", "api_bank", "tracking"),
        folders=("policy",),
        inputs=(api_bank_option,),
        help="""Evaluate a policy on API-Bank, levels 1 to 3.

    \b
    Examples:
      rest eval-api-bank --policy runs/rl --api-bank data/api-bank --out runs/api-bank""",
    ),
    _stage_command(
        "register",
        "compare_and_register",
        sections=("registry", "tracking"),
        folders=("dataset", "policy", "bfcl", "api_bank"),
        help="""Register a policy in MLflow as `challenger`.

    Its figures and lineage go with it, and whether it would become champion.

    \b
    Examples:
      rest register --dataset runs/data --policy runs/rl --bfcl runs/bfcl --api-bank runs/api-bank --out runs/record""",
    ),
)
