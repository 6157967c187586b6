"""What all stages have in common: the output folder, the MLflow run, the manifest, and its errors in one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from safetensors import SafetensorError

from rest_core import manifest
from rest_core.ablation.collect import TRAINING, training_record
from rest_core.ablation.settings import Trial
from rest_core.config import StorageConfig, TrackingConfig, validate
from rest_core.disk import disk_errors, disk_problem
from rest_core.errors import EXIT_USER_ERROR, Preempted, UserError
from rest_core.operations import handoff
from rest_core.operations.catalogue import CATALOGUE
from rest_core.operations.failures import ProcessError, ending_together
from rest_core.operations.result import METRICS_FILE, StageResult, alone_in, clear, write_error
from rest_core.operations.tracking.recorder import Measured, Recorder
from rest_core.operations.tracking.runs import TrialRun, stage_run
from rest_core.operations.tracking.tags import INPUT_TAG, SCHEME_TAG, SETTINGS_TAG
from rest_core.processes import is_main_process

log = logging.getLogger(__name__)

NO_STORAGE = StorageConfig()
SOURCE_INPUT = "policy_source"
"""An input in an evaluation's manifest: where its policy was taken from, as it was configured."""


@dataclass
class StageContext:
    """A stage that runs: its folder and MLflow run, and what its manifest will say."""

    name: str
    out: Path
    run: Recorder | _NoRun
    sections: Mapping[str, BaseModel]
    storage: StorageConfig = NO_STORAGE
    inputs: dict[str, Any] = field(default_factory=dict)
    on_parent: Collection[str] | None = None
    """The figures that go on the parent run as well; None = the catalogue's main ones, on a trial's run all."""
    measured: Measured | None = None
    """Of an evaluation: what its figures are of."""

    def finish(self, metrics: dict[str, float], **counts: Any) -> StageResult:
        """Write metrics and manifest, record the figures."""
        if not is_main_process():
            return StageResult(metrics, counts.get("skipped"))
        on_parent = self.on_parent
        if on_parent is None:  # trials of an ablation are compared by every figure
            on_parent = metrics if "trial" in self.sections else CATALOGUE[self.name].main_metrics
        self.run.summary(metrics, on_parent=on_parent, of=self.measured)
        (self.out / METRICS_FILE).write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        config = {name: section.model_dump(mode="json") for name, section in self.sections.items()}
        files = manifest.contents(self.out)
        made = manifest.write(
            self.out, stage=self.name, config=config, inputs=self.inputs, counts={**counts, **metrics}, files=files
        )
        if CATALOGUE[self.name].kind == "Model" and "skipped" not in counts:
            self.run.made_model(made["sha256"], self.name)
        if self.storage.location is not None and handoff.read(self.out) is None:
            handoff.deliver(self.out, self.storage.location, self.name, files)
        return StageResult(metrics, counts.get("skipped"))

    def skip(self, reason: str, *, quiet: bool = False) -> StageResult:
        """End the stage without a result; `quiet` where that is nothing to warn of."""
        log.log(logging.INFO if quiet else logging.WARNING, "%s is skipped: %s", self.name, reason)
        self.run.tags({"rest.skipped": reason})
        return self.finish({}, skipped=reason, **({"quiet": True} if quiet else {}))

    def add_input(self, name: str, folder: Path | str) -> str:
        """Note an input folder's hash in the manifest; returns the hash, or the source of a model by reference.

        MLflow records where it was read from: to reproduce a stage, one needs its inputs.

        Raises:
            UserError: the folder is not what the stage that made it has left there.
        """
        path = Path(folder)
        reference = handoff.read(path)
        if reference is None:
            handoff.fetch(path)
        self.run.tags({f"{INPUT_TAG}{name}": str(folder) if reference is None else reference.source})
        digest = str(manifest.read(path)["sha256"]) if (path / manifest.FILE_NAME).is_file() else str(folder)
        self.inputs[name] = digest
        return digest

    def add_policy(self, policy: Path | str) -> None:
        """Note the policy that is evaluated; of a trial's policy, how it was trained too."""
        self.add_input("policy", policy)
        if trial_of(policy) is not None:
            self.inputs[TRAINING] = training_record(manifest.read(Path(policy)))


class _NoRun:
    """Of a process that is not the first, since nothing is recorded twice; and of a stage that is off."""

    run_id: str | None = None

    def _nothing(self, *_: object, **__: object) -> None:
        return

    metrics = summary = tags = table = figure = artifact = dataset = fail = _nothing
    made_model = prompt = answers = _nothing

    def wait(self, timeout: float) -> bool:
        return True


@contextmanager
def open_stage(
    name: str,
    out: Path,
    tracking: TrackingConfig,
    pipeline_run: str,
    storage_config: StorageConfig = NO_STORAGE,
    trial: Trial | None = None,
    off: bool = False,
    **sections: BaseModel,
) -> Iterator[StageContext]:
    """Everything around a stage: its folder, its MLflow run (in its trial's), and its errors in one line.

    One that is `off` has no run: an empty one would stand among those that people compare.

    Raises:
        UserError: another process runs a stage with this folder; there it leaves nothing.
    """
    recorded = sections  # in MLflow they are a profile, for whoever reproduces the stage; tags have the trial
    trial_run = None
    if trial is not None:
        sections = {**sections, "trial": trial}
        tags = {SCHEME_TAG: trial.name, "rest.seed": str(trial.seed)}
        if trial.settings:
            tags[SETTINGS_TAG] = ",".join(trial.settings)
        trial_run = TrialRun(trial.label, tags)
    if not is_main_process():
        with ending_together():
            yield StageContext(name, out, _NoRun(), sections)
        return
    with alone_in(out):
        try:
            with disk_errors(out):
                clear(out)
            spool = out.with_name(f"{out.name}.tracking")
            with (
                nullcontext(_NoRun())
                if off
                else stage_run(
                    tracking, stage=name, pipeline_run=pipeline_run, spool=spool, parameters=recorded, trial=trial_run
                ) as run,
                ending_together(lambda failure: _record_failure(name, out, run, failure)),
            ):
                yield StageContext(name, out, run, sections, storage_config)
        except (UserError, Preempted) as error:
            write_error(name, out, error)
            raise
        except (OSError, SafetensorError, RuntimeError) as error:
            if (text := disk_problem(error, out)) is None:
                raise
            problem = UserError(text)
            write_error(name, out, problem)
            raise problem from error


def _record_failure(name: str, out: Path, run: Recorder | _NoRun, failure: ProcessError) -> None:
    """Leave another process's failure where this one's own would be."""
    if failure.exit_code == EXIT_USER_ERROR:
        write_error(name, out, UserError(failure.message))
    run.fail(failure.message)


def passed_on(policy: Path | str) -> bool:
    """Whether the stage that made a policy was switched off, so that it is the one that the stage was given."""
    folder = Path(policy)
    return (folder / manifest.FILE_NAME).is_file() and "skipped" in manifest.read(folder)["counts"]


def trial_of(policy: Path | str) -> Trial | None:
    """The trial that has trained a policy."""
    folder = Path(policy)
    if not (folder / manifest.FILE_NAME).is_file():
        return None
    trial = manifest.read(folder)["config"].get("trial")
    return None if trial is None else validate(Trial, trial, where=f"{folder / manifest.FILE_NAME}: trial")
