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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kfp import dsl

from rest_core import config, logs, manifest
from rest_core.credentials import redact
from rest_core.errors import Preempted, UserError
from rest_core.operations import pods
from rest_core.operations.catalogue import CATALOGUE, evaluations, inputs_of
from rest_core.operations.catalogue_entry import Stage, resolve, state_of
from rest_core.operations.tracking import store
from rest_core.processes import skip_last_collections

log = logging.getLogger(__name__)

UNFINISHED = ".unfinished"
"""Folder in a local pipeline's root with what stages had left that were not done, by the path of their task."""
ROOT_VARIABLE = "REST_PIPELINE_ROOT"  # of a local run's stages: its pipeline's root


def run_component(name: str, arguments: Mapping[str, Any]) -> None:
    """Call the function of a stage with a component's arguments, and log what came back.

    Args:
        name: of the stage in the catalogue.
        arguments: of the component's function, by name. An empty `pipeline_run` is the KFP run that this pod belongs
            to. The metadata of the output artifact receives the manifest's lineage; `metrics` receives the stage's
            figures, and its cost as `stage/seconds` and `stage/peak_rss_mib`, also when it fails (the same figures are
            written as JSON to the artifact's file, without which KFP never caches the task); `page` receives the file
            that KFP shows, also when it fails. States of places (`Stage.outside`) are for KFP's cache alone.

    Raises:
        UserError: a wrong configuration or input; the task fails with this one line.
        SystemExit: the stage was asked to stop and can be started again; the code says so (`rest_core.errors`).
    """
    skip_last_collections()
    stage, out = CATALOGUE[name], arguments[CATALOGUE[name].output]
    started = time.monotonic()
    figures: dict[str, float] = {}
    take_up(Path(out.path))
    try:
        with _terminal_for_progress():
            result = stage.load()(**_keywords(stage, arguments), out=Path(out.path))
        figures.update(result.metrics)
        made = manifest.read(Path(out.path))
        lineage = {"sha256": made["sha256"], "git_commit": made["git_commit"], "skipped": result.skipped}
        out.metadata.update({key: value for key, value in lineage.items() if value is not None})
        for section in stage.looks_at:
            given = Path(arguments[state_of(section)])
            given.parent.mkdir(parents=True, exist_ok=True)
            given.write_text(result.states[section], encoding="utf-8")
    except Preempted as stop:
        log.warning("%s", stop)
        sys.exit(stop.exit_code)  # the task is tried again
    finally:
        figures["stage/seconds"] = round(time.monotonic() - started, 3)
        figures["stage/peak_rss_mib"] = _peak_rss_mib()
        _log_figures(figures, arguments["metrics"])
        if stage.page is not None and (made_page := Path(out.path) / stage.page[0]).is_file():
            shutil.copyfile(made_page, arguments["page"].path)


def take_up(out: Path) -> None:
    """Go on with what an earlier attempt of a local run has left unfinished, if it has left something.

    Beside the output are its tracking records (OUT.tracking) and checkpoints (OUT.training).

    Args:
        out: <root>/<pipeline>-<time>/[<loop>-iteration-<n>/]<task>/<artifact>
    """
    root = os.environ.get(ROOT_VARIABLE)
    if not root:
        return
    left = Path(root, UNFINISHED, *out.relative_to(root).parts[1:])
    for path in (left, *left.parent.glob(f"{left.name}.*")):
        if path.exists():
            path.replace(out.with_name(path.name))


def _keywords(stage: Stage, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a stage's function, but for `out`."""
    models = {section: config.Config.model_fields[section].annotation for section in stage.sections}
    keywords = {name: _read(model, arguments[name], name) for name, model in models.items()}
    for name, parameter in stage.parameters:
        if arguments[name] or not parameter.optional:
            keywords[name] = _read(resolve(parameter.model), arguments[name], name)
    folders = {name: _paths(arguments[name]) for name in inputs_of(stage)}
    if stage.reads_evaluations:
        keywords["evaluations"] = {
            policy: {str(one.benchmark): folders.pop(f"{one.benchmark}_{policy}") for one in evaluations(policy)}
            for policy in stage.reads_evaluations
        }
    if stage.evaluated is not None:
        keywords["evaluated"] = stage.evaluated.name
    if pods.run_id() and stage.part != "cluster":  # those report themselves that there is no server
        _require_shared_store(keywords["tracking"])
    return {**keywords, **folders, "pipeline_run": arguments["pipeline_run"] or _kfp_run_id()}


def _read(model: Any, values: Any, where: str) -> Any:
    if isinstance(values, list):
        return tuple(config.validate(model, one, where=f"{where}[{n}]") for n, one in enumerate(values))
    return config.validate(model, values if isinstance(values, dict) else vars(values), where=where)


def _paths(artifacts: Any) -> Path | list[Path]:
    return [Path(one.path) for one in artifacts] if isinstance(artifacts, list) else Path(artifacts.path)


def _require_shared_store(tracking: config.TrackingConfig) -> None:
    """On a cluster every stage is a pod of its own: a store on a pod's disk would be lost with it, the model too."""
    uri = store.resolve_uri(tracking)
    if store.is_local(uri):
        raise UserError(
            f"MLflow at {redact(uri)} would be on this pod's own disk: set tracking.uri, or MLFLOW_TRACKING_URI, "
            "to an MLflow server"
        )


def _kfp_run_id() -> str:
    run_id = pods.run_id()
    if run_id is None:
        raise UserError(
            f"pipeline_run is empty and {pods.RUN_ID_VARIABLE} is not set: give the pipeline a pipeline_run"
        )
    return run_id


def _log_figures(figures: Mapping[str, float], metrics: dsl.Metrics) -> None:
    finite = {name: value for name, value in figures.items() if math.isfinite(value)}  # KFP's metadata takes no other
    for name, value in finite.items():
        metrics.log_metric(name, value)
    Path(metrics.path).write_text(json.dumps(finite, indent=2) + "\n", encoding="utf-8")


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
