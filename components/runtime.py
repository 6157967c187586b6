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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from rest_core import config, logs, manifest, pods
from rest_core.errors import Preempted, UserError
from rest_core.preflight.surroundings import Surroundings
from rest_core.stages import PAGE_FILE, StageResult
from rest_core.status.final import FinalStatus, Links
from rest_core.tracking import store

log = logging.getLogger(__name__)

# Sections that are no configuration of a run: what the cluster is to give, and what the exit task is told.
_OF_CLUSTERS: dict[str, type[config.Section]] = {"surroundings": Surroundings, "links": Links, "final": FinalStatus}


def run_stage(
    stage: Callable[..., StageResult],
    *,
    sections: Mapping[str, dict[str, Any]],
    pipeline_run: str,
    folders: Mapping[str, dsl.Artifact] | None = None,
    out: dsl.Artifact,
    metrics: dsl.Metrics,
    page: dsl.Artifact | None = None,
) -> None:
    """Call a function of `rest_core.stages` and log what came back.

    Args:
        stage: the stage function.
        sections: sections of the configuration by their name in `rest_core.config.Config`.
        pipeline_run: key of the pipeline run; empty = the KFP run that this pod belongs to.
        folders: input artifacts, each a folder that an earlier stage made.
        out: the artifact whose folder the stage fills; its metadata becomes the manifest's lineage.
        metrics: receives the stage's figures, and its cost as `stage/seconds` and `stage/peak_rss_mib`, also when it
            fails; the same figures are written as JSON to the artifact's file, without which KFP never caches the task.
        page: receives the stage's report.md, which KFP shows. Such a stage reports on the run: it tells itself when
            there is no MLflow server.

    Raises:
        UserError: a wrong configuration or input; the task fails with its one line.
        SystemExit: the stage was told to stop and can be started again; its code says so (`rest_core.errors`).
    """
    started = time.monotonic()
    figures: dict[str, float] = {}
    if pods.run_id() and "tracking" in sections and page is None:
        _require_shared_store(config.validate(config.TrackingConfig, sections["tracking"], where="tracking"))
    try:
        with _terminal_for_progress():
            result = stage(
                **{name: _section(name, values) for name, values in sections.items()},
                **{name: Path(artifact.path) for name, artifact in (folders or {}).items()},
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
        if page is not None and (made_page := Path(out.path) / PAGE_FILE).is_file():
            shutil.copyfile(made_page, page.path)


def _require_shared_store(tracking: config.TrackingConfig) -> None:
    """On a cluster every stage is a pod of its own: a store on a pod's disk would be lost with it, the model too."""
    uri = store.resolve_uri(tracking)
    if store.is_local(uri):
        raise UserError(
            f"MLflow at {store.redact(uri)} would be on this pod's own disk: set tracking.uri, or MLFLOW_TRACKING_URI, "
            "to an MLflow server"
        )


def _section(name: str, values: dict[str, Any]) -> config.Section:
    model = _OF_CLUSTERS.get(name) or config.Config.model_fields[name].annotation
    assert isinstance(model, type) and issubclass(model, config.Section)
    return config.validate(model, values, where=name)


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
