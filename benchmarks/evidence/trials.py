"""Rows of trials, from the MLflow store in which `rest` has recorded them, and the file that they are kept in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rest_core.operations.tracking.tags import DTYPE_TAG, KIND_TAG, PIPELINE_RUN_TAG, SCHEME_TAG, STAGE_TAG, TRIAL_TAG

# Of each step, None where a step has none (no token of a region); of what is measured between steps, [step, value].
CURVES = re.compile(r"(reward/total|reward/well_formed|response/.*|entropy/.*|grad_norm)$")
MEASURED = re.compile(r"task/(accuracy|call_accuracy|irrelevance_accuracy|response_tokens)$")
FIGURES = re.compile(r"task/(last/.*|best$)|bfcl/(?!low/|high/|count/|subset$)|api_bank/(?!low/|high/|count/|subset$)")
SETTINGS = re.compile(r"cfg/rl/(weights/.*|learning_rate|steps|evaluate_samples|seed)$")


def collect(part: str, database: Path, cpu: str) -> list[dict[str, Any]]:
    """A row for each finished training of a trial in an MLflow store, with the evaluations of its policy."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{database}")
    found: dict[tuple[str, str], dict[str, Any]] = {}  # by trial: its newest finished run of each stage
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"]):
            tags = run.data.tags
            if tags.get(KIND_TAG) == "stage" and SCHEME_TAG in tags and run.info.status == "FINISHED":
                found.setdefault((tags[PIPELINE_RUN_TAG], tags[TRIAL_TAG]), {})[tags[STAGE_TAG]] = run
    rows = []
    for stages in found.values():
        if (training := stages.get("rest-rl")) is None:
            continue
        settings = {key[7:]: value for key, value in training.data.params.items() if SETTINGS.match(key)}
        figures = {name: value for run in stages.values() for name, value in run.data.metrics.items()}
        history = {
            name: sorted((one.step, one.value) for one in client.get_metric_history(training.info.run_id, name))
            for name in training.data.metrics
        }
        more = {
            "settings": settings,
            "seconds": round(sum(value for _, value in history["seconds/step"])),  # of all attempts
            "commit": training.data.tags.get("mlflow.source.git.commit"),
            "machine": f"{cpu}, {training.data.tags[DTYPE_TAG]}",
        }
        seed = int(settings.pop("seed"))
        rows.append(row(part, training.data.tags[SCHEME_TAG], seed, figures, history, **more))
    return rows


def row(
    part: str,
    scheme: str,
    seed: int,
    figures: Mapping[str, float],
    history: Mapping[str, Sequence[tuple[int, float]]],
    **more: Any,
) -> dict[str, Any]:
    """A trial as it is kept.

    Args:
        figures: of its end, by name.
        history: [step, value] of each metric of the training, in the order of the steps.
        more: how it was made.
    """
    steps = [step for step, _ in history.get("reward/total", ())]
    curves = {name: dict(history[name]) for name in sorted(history) if CURVES.match(name)}
    return {
        "part": part,
        "scheme": scheme,
        "seed": seed,
        "figures": {name: _short(figures[name]) for name in sorted(figures) if FIGURES.match(name)},
        "curves": {
            name: [None if step not in one else _short(one[step]) for step in steps] for name, one in curves.items()
        },
        "measured": {
            name: [(step, _short(value)) for step, value in history[name]]
            for name in sorted(history)
            if MEASURED.match(name)
        },
        **more,
    }


def evaluated(part: str, folder: Path, names: Iterable[str], cpu: str) -> list[dict[str, Any]]:
    """A row for each policy without RL of which all figures are there: folders NAME-SEED-{task,bfcl,api-bank}."""
    rows = []
    for name in names:
        for task in sorted(folder.glob(f"{name}-*-task")):
            seed = int(task.name.split("-")[-2])
            folders = [task, *(folder / f"{name}-{seed}-{benchmark}" for benchmark in ("bfcl", "api-bank"))]
            if not all((one / "manifest.json").exists() for one in folders):
                continue
            figures: dict[str, float] = {}
            for one in folders:
                figures |= json.loads((one / "metrics.json").read_text(encoding="utf-8"))
            rows.append(row(part, name, seed, figures, {}, machine=cpu))
    return rows


def keep(rows: Iterable[dict[str, Any]], file: Path) -> int:
    """Add rows to a file, in place of those of the same trials; returns how many it has then."""
    known = {_key(row): row for row in [*read(file), *rows]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(known[key]) + "\n" for key in sorted(known)), encoding="utf-8")
    return len(known)


def read(file: Path) -> list[dict[str, Any]]:
    """The rows of a file; none where there is no file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def _key(row: dict[str, Any]) -> tuple[str, str, int]:
    return row["part"], row["scheme"], row["seed"]


def _short(value: float) -> float:
    return float(f"{value:.4g}")
