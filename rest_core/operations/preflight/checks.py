"""All checks of preflight, one after another; a problem stops none of the others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial

from rest_core.ablation.settings import AblationConfig, Trial
from rest_core.ablation.settings import check as check_trials
from rest_core.config import Config
from rest_core.data.published import Unreachable
from rest_core.errors import UserError, described
from rest_core.operations.catalogue import CATALOGUE
from rest_core.operations.pods import NotAllowed
from rest_core.operations.preflight import cluster, gpu, locations, mlflow_server, nodes, sources
from rest_core.operations.preflight.findings import Finding
from rest_core.operations.preflight.surroundings import Asked, Surroundings

log = logging.getLogger(__name__)

MLFLOW = "MLflow"  # the check that decides whether the others' results can be recorded

_ALL_SECONDS, _EACH_SECONDS = 600.0, 180.0

Check = tuple[str, Callable[[], str]]  # its name, and a function as described in the package's docstring


def list_checks(
    config: Config,
    surroundings: Surroundings,
    ablation: AblationConfig | None = None,
    trials: Sequence[Trial] = (),
) -> list[Check]:
    """The checks that this configuration on this platform calls for.

    Volumes are not mounted, lest preflight wait for one that is not there: what lies on them the stages will see.
    """
    places = (
        ("storage.location", config.storage.location),
        ("registry.destination", config.registry.destination if config.registry.enabled else None),
        ("rl.mirror", config.rl.mirror if config.rl.enabled else None),
    )
    off_volumes = partial(_off_volumes, surroundings)
    listed: list[Check] = [
        *((f"{one.kind} {one.name}", partial(cluster.check_secret, one)) for one in surroundings.secrets),
        *(
            (f"files of {one.name}", partial(cluster.check_files, one, surroundings.ca_bundle))
            for one in surroundings.files
        ),
        *((f"volume {one.claim}", partial(cluster.check_volume, one.claim)) for one in surroundings.mounts),
        *((name, partial(off_volumes, place, partial(locations.check, place))) for name, place in places if place),
        (MLFLOW, partial(mlflow_server.check, config, surroundings)),
        ("model", partial(off_volumes, config.model.source, partial(sources.check_model, config.model))),
        *(
            ("data", partial(off_volumes, source.location, partial(sources.check_data, source.location)))
            for source in config.data.sources
        ),
    ]
    if config.api_bank.enabled:
        look = partial(sources.check_api_bank, config.api_bank)
        listed.append(("API-Bank", partial(off_volumes, config.api_bank.location or "", look)))
    model_is_here = surroundings.volume_of(config.model.source) is None
    look_for_nodes = partial(nodes.check, model=config.model, sft=config.sft, rl=config.rl, model_is_here=model_is_here)
    listed += [
        (f"nodes for {stages}", partial(look_for_nodes, asked)) for stages, asked in _together(surroundings.asked)
    ]
    for stage in surroundings.without_gpu:
        if CATALOGUE[stage].enabled(config):
            listed.append((f"GPU of {stage}", partial(gpu.refuse_without, stage)))
    if config.launch.train_job is not None and config.rl.enabled:
        listed.append(("TrainJob", partial(cluster.check_train_job, config.launch.train_job, config.storage)))
    if ablation is not None:
        listed.append(("trials", partial(check_trials, trials, ablation, config.rl, config.bfcl, config.api_bank)))
    return listed


def _together(asked: Sequence[Asked]) -> list[tuple[str, Asked]]:
    """Of stages without a GPU that ask for the same one alone, with the names of all."""
    alike: dict[str, list[Asked]] = {}
    for one in asked:
        key = one.stage if one.count else one.model_copy(update={"stage": ""}).model_dump_json()
        alike.setdefault(key, []).append(one)
    return [(", ".join(one.stage for one in ones), ones[0]) for ones in alike.values()]


def _off_volumes(surroundings: Surroundings, place: str, look: Callable[[], str]) -> str:
    """`look`, unless the place is on a volume; what no server gives may be in the cache on one."""
    if (claim := surroundings.volume_of(place)) is not None:
        raise NotAllowed(f"{place} is on the volume {claim}, which preflight does not mount; the stages will see")
    try:
        return look()
    except Unreachable as problem:
        if not surroundings.mounts:
            raise
        raise NotAllowed(f"{problem}; it may be in the cache, on a volume that preflight does not mount") from None


def run_checks(listed: Sequence[Check], *, seconds: float = _ALL_SECONDS, each: float = _EACH_SECONDS) -> list[Finding]:
    """Make the checks; a defect of a check is a problem, too, and its traceback is logged.

    Args:
        seconds: for all together; those that have not begun by then are not made. The deadline of the pod is none
            for them: it counts the pull of the image.
        each: for one; a check that has not ended by then is a problem.
    """
    findings = []
    until = time.monotonic() + seconds
    for name, check in listed:
        try:
            left = until - time.monotonic()
            if left <= 0:
                raise NotAllowed(f"the time for all checks ({seconds:g} s) is over")
            finding = Finding(name, "ok", _within(min(left, each), check))
        except NotAllowed as reason:
            finding = Finding(name, "not checked", described(reason))
        except UserError as problem:
            finding = Finding(name, "problem", described(problem))
        except Exception as defect:
            log.exception("the check of %s failed", name)
            finding = Finding(name, "problem", f"the check failed: {described(defect)}")
        log.info("%s: %s: %s", finding.check, finding.outcome, finding.detail)
        findings.append(finding)
    return findings


def _within(seconds: float, check: Callable[[], str]) -> str:
    """What a check returns or raises; one that goes on is left behind, and ends with this process."""
    made: Future[str] = Future()

    def run() -> None:
        try:
            made.set_result(check())
        except BaseException as error:
            made.set_exception(error)

    threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()
    if not wait([made], seconds).done:
        raise UserError(f"it has not ended after {seconds:.0f} s: whatever it asks does not answer")
    return made.result()
