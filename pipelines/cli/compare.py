"""`rest compare`: did it get better? Evaluations of the same items, compared item by item."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from pipelines.cli.options import configuration, configured, local_path
from rest_core.config import TrackingConfig
from rest_core.errors import UserError
from rest_core.operations.catalogue import benchmarks

_WIDTH = 140  # of the table where it goes to a file or a pipe


@click.command()
@click.argument("evaluations", nargs=-1, required=True, metavar="A B [C ...]")
@configured
@click.option("--name", "names", multiple=True, metavar="TEXT", help="What to call an evaluation; once for each.")
@click.option(
    "--benchmark",
    type=click.Choice(sorted({str(stage.benchmark) for stage in benchmarks()})),
    default="bfcl",
    show_default=True,
    help="Of a model version or a pipeline's run: the benchmark that is compared.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Directory for comparison.html, .md and .json; default: runs/comparison-DATE-TIME.",
)
@click.option(
    "--log/--no-log",
    default=None,
    help="Record the comparison in MLflow; by default where an evaluation comes from there.",
)
def compare(
    evaluations: tuple[str, ...],
    profile: str,
    overrides: tuple[str, ...],
    names: tuple[str, ...],
    benchmark: str,
    out: Path | None,
    log: bool | None,
) -> None:
    """Compare evaluations of several policies on the same questions.

    Each of A, B, … is the output directory of an evaluation, the id of an MLflow run, or a version of a registered
    model (models:/NAME/VERSION, NAME@ALIAS). Each is compared with A and with the one before it. Evaluations that
    differ in their questions, prompt template, limits or checker are refused.

    \b
    Examples:
      rest compare runs/base runs/warmup runs/rest --name base --name warm-up --name ResT
      rest compare rest-tool-use@champion rest-tool-use@challenger
      rest compare models:/rest-tool-use/1 models:/rest-tool-use/4 --benchmark api_bank
      rest compare runs/gpt-4o 0f3c8d9be1a24c57b6f0a1d2e3c4b5a6 --no-log --out gpt-4o
    """
    tracking = configuration(profile, overrides).tracking
    from rich.console import Console

    from rest_core.evaluation.comparison import compare as compared

    with _directories(evaluations, tracking, benchmark) as found:
        comparison = compared([directory for _, directory in found], names or _apart([name for name, _ in found]))
    out = out or Path("runs") / f"comparison-{time.strftime('%Y%m%d-%H%M%S')}"
    written = comparison.write(out)
    width = None if sys.stdout.isatty() else _WIDTH
    Console(file=sys.stdout, highlight=False, width=width).print(comparison.table())
    if log or (log is None and any(local_path(text) is None for text in evaluations)):
        _record(tracking, evaluations, written, comparison.metrics(), out)
    click.echo(f"wrote {out / 'comparison.html'}")


@contextlib.contextmanager
def _directories(texts: Sequence[str], tracking: TrackingConfig, benchmark: str) -> Iterator[list[tuple[str, Path]]]:
    """Name and directory of each evaluation; those of MLflow are there as long as the block lasts."""
    from rest_core.operations.tracking import evaluations, store

    client = None
    with tempfile.TemporaryDirectory(prefix="rest-compare-") as scratch:
        found = []
        for number, text in enumerate(texts):
            if (directory := local_path(text)) is not None:
                found.append((text, directory))
                continue
            if not evaluations.is_reference(text):
                raise UserError(
                    f"{text}: no directory, run id or model version; write a version as models:/NAME/VERSION or "
                    "NAME@ALIAS"
                )
            os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
            client = client or store.connect(tracking)
            one = evaluations.find(client, text, benchmark)
            found.append((one.name, evaluations.download(client, one, Path(scratch, str(number)))))
        yield found


def _apart(names: Sequence[str]) -> list[str]:
    """Names without the directories at their beginning and end that all of them share."""
    parts = [list(Path(name).parts) for name in names]
    for end in (0, -1):
        while all(len(own) > 1 for own in parts) and len({own[end] for own in parts}) == 1:
            for own in parts:
                del own[end]
    return [str(Path(*own)) for own in parts]


def _record(
    tracking: TrackingConfig,
    evaluations: Sequence[str],
    written: Sequence[Path],
    metrics: dict[str, float],
    out: Path,
) -> None:
    """A run in MLflow with the comparison's files and differences."""
    import logging

    from rest_core import logs
    from rest_core.operations.tracking.runs import finish_pipeline, new_pipeline_run, stage_run
    from rest_core.operations.tracking.tags import INPUT_TAG

    logs.configure(sys.stderr, level=logging.WARNING, libraries=("mlflow",))
    name = new_pipeline_run("compare")
    spool = out.with_name(f"{out.name}.tracking")
    parameters = {"evaluations": list(evaluations)}
    with stage_run(tracking, stage="compare", pipeline_run=name, spool=spool, parameters=parameters) as run:
        run.tags({f"{INPUT_TAG}{number}": text for number, text in enumerate(evaluations, 1)})
        run.metrics(metrics)
        for file in written:
            run.artifact(file)
    finish_pipeline(tracking, pipeline_run=name, spool=out.with_name(f"{out.name}.finish.tracking"))


COMMANDS = (compare,)
