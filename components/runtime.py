"""What every component does around its stage: typed configuration in, figures and cost of the stage out."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfp import dsl

from rest_core import config, logs, manifest
from rest_core.ablation.settings import AblationConfig, Trial
from rest_core.errors import Preempted, UserError
from rest_core.operations import pods
from rest_core.operations.preflight.surroundings import Surroundings
from rest_core.operations.status.final import FinalStatus, Links
from rest_core.operations.tracking import store
from rest_core.processes import skip_last_collections
from rest_core.stages import StageResult

log = logging.getLogger(__name__)

# Sections that are no configuration of a run: what the cluster is to give, what the exit task is told, and what an
# ablation compares.
_OTHERS: dict[str, type[config.Section]] = {
    "surroundings": Surroundings,
    "links": Links,
    "final": FinalStatus,
    "ablation": AblationConfig,
    "trial": Trial,
    "trials": Trial,
}
_LEFT_OUT_WHEN_EMPTY = ("trial", "ablation")


def run_stage(
    stage: Callable[..., StageResult],
    *,
    sections: Mapping[str, dict[str, Any] | list[dict[str, Any]]],
    pipeline_run: str,
    folders: Mapping[str, dsl.Artifact | Sequence[dsl.Artifact]] | None = None,
    out: dsl.Artifact,
    metrics: dsl.Metrics,
    pages: Mapping[str, dsl.Artifact] | None = None,
    needs_mlflow: bool = True,
) -> None:
    """Call a function of `rest_core.stages` and log what came back.

    Args:
        stage: the stage function.
        sections: sections of the configuration by their name in `rest_core.config.Config`, and those of an ablation;
            a trial or an ablation that is empty is none.
        pipeline_run: key of the pipeline run; empty = the KFP run that this pod belongs to.
        folders: input artifacts, each a folder that an earlier stage made, or a list of such.
        out: the artifact whose folder the stage fills; its metadata becomes the manifest's lineage.
        metrics: receives the stage's figures, and its cost as `stage/seconds` and `stage/peak_rss_mib`, also when it
            fails; the same figures are written as JSON to the artifact's file, without which KFP never caches the task.
        pages: artifacts that KFP shows, by the file of the stage's folder that each receives, also when it fails.
        needs_mlflow: whether the stage is refused without an MLflow server; one that reports on the run tells itself
            that there is none.

    Raises:
        UserError: a wrong configuration or input; the task fails with its one line.
        SystemExit: the stage was told to stop and can be started again; its code says so (`rest_core.errors`).
    """
    skip_last_collections()
    started = time.monotonic()
    figures: dict[str, float] = {}
    if pods.run_id() and "tracking" in sections and needs_mlflow:
        _require_shared_store(config.validate(config.TrackingConfig, sections["tracking"], where="tracking"))
    try:
        with _terminal_for_progress():
            result = stage(
                **{
                    name: _section(name, values)
                    for name, values in sections.items()
                    if values or name not in _LEFT_OUT_WHEN_EMPTY
                },
                **{name: _paths(artifacts) for name, artifacts in (folders or {}).items()},
                pipeline_run=pipeline_run or _kfp_run_id(),
                out=Path(out.path),
            )
        figures.update(result.metrics)
        made = manifest.read(Path(out.path))
        lineage = {"sha256": made["sha256"], "git_commit": made["git_commit"], "skipped": result.skipped}
        out.metadata.update({key: value for key, value in lineage.items() if value is not None})
    except Preempted as stop:
        log.warning("%s", stop)
        sys.exit(stop.exit_code)  # the task is tried again
    finally:
        figures["stage/seconds"] = round(time.monotonic() - started, 3)
        figures["stage/peak_rss_mib"] = _peak_rss_mib()
        finite = {
            name: value for name, value in figures.items() if math.isfinite(value)
        }  # KFP's metadata takes no other
        for name, value in finite.items():
            metrics.log_metric(name, value)
        Path(metrics.path).write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")
        for name, page in (pages or {}).items():
            if (made_page := Path(out.path) / name).is_file():
                shutil.copyfile(made_page, page.path)


def _require_shared_store(tracking: config.TrackingConfig) -> None:
    """On a cluster every stage is a pod of its own: a store on a pod's disk would be lost with it, the model too."""
    uri = store.resolve_uri(tracking)
    if store.is_local(uri):
        raise UserError(
            f"MLflow at {store.redact(uri)} would be on this pod's own disk: set tracking.uri, or MLFLOW_TRACKING_URI, "
            "to an MLflow server"
        )


def _section(name: str, values: dict[str, Any] | list[dict[str, Any]]) -> config.Section | tuple[config.Section, ...]:
    model = _OTHERS.get(name) or config.Config.model_fields[name].annotation
    assert isinstance(model, type) and issubclass(model, config.Section)
    if isinstance(values, list):
        return tuple(config.validate(model, one, where=f"{name}[{n}]") for n, one in enumerate(values))
    return config.validate(model, values, where=name)


def _paths(artifacts: dsl.Artifact | Sequence[dsl.Artifact]) -> Path | list[Path]:
    if isinstance(artifacts, dsl.Artifact):
        return Path(artifacts.path)
    return [Path(artifact.path) for artifact in artifacts]


def _kfp_run_id() -> str:
    run_id = pods.run_id()
    if run_id is None:
        raise UserError(
            f"pipeline_run is empty and {pods.RUN_ID_VARIABLE} is not set: give the pipeline a pipeline_run"
        )
    return run_id


@contextlib.contextmanager
def _terminal_for_progress() -> Iterator[None]:
    """Log to stdout, which KFP collects; draw progress bars on a terminal that was handed down as stdin.

    kfp.local pipes a component's stdout and stderr, so bars on either would be silent there; stdin it passes on, and
    `pipelines.local` puts its own terminal there. In a container stdin is no terminal and nothing is drawn.
    """
    with contextlib.ExitStack() as stack:
        if os.isatty(0):
            terminal = stack.enter_context(os.fdopen(os.dup(0), "w", encoding="utf-8", buffering=1))
            stack.enter_context(contextlib.redirect_stderr(terminal))
        logs.configure(sys.stdout)
        yield


def _peak_rss_mib() -> float:
    """Largest resident memory in MiB of this process, or of a child where one was larger (Linux counts in KiB)."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
