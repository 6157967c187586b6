"""All checks of preflight, one after another; a problem stops none of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

from rest_core.config import ApiBankConfig, DataConfig, ModelConfig, RegistryConfig, RlConfig, SftConfig, TrackingConfig
from rest_core.errors import UserError
from rest_core.pods import NotAllowed
from rest_core.preflight import credentials, gpu, locations, mlflow_server, sources
from rest_core.preflight.report import Finding
from rest_core.preflight.surroundings import Surroundings

log = logging.getLogger(__name__)

MLFLOW = "MLflow"  # the check that decides whether the others' results can be recorded

# Looks for one thing. Returns what was found, in one line; raises `UserError` for a problem, `NotAllowed` where it
# cannot look.
Check = tuple[str, Callable[[], str]]


def checks(
    *,
    model: ModelConfig,
    data: DataConfig,
    sft: SftConfig,
    rl: RlConfig,
    api_bank: ApiBankConfig,
    registry: RegistryConfig,
    tracking: TrackingConfig,
    surroundings: Surroundings,
) -> list[Check]:
    """The checks that this configuration on this platform calls for, with what each looks at."""
    places = (
        ("storage.location", surroundings.location),
        ("registry.destination", registry.destination if registry.enabled else None),
        ("rl.mirror", rl.mirror if rl.enabled else None),
    )
    listed: list[Check] = [
        *((f"Secret {one.name}", partial(credentials.check, one)) for one in surroundings.secrets),
        *((f"volume {one.claim}", partial(locations.check, one.path)) for one in surroundings.mounts),
        *((name, partial(locations.check, place)) for name, place in places if place is not None),
        (MLFLOW, partial(mlflow_server.check, tracking)),
        ("model", partial(sources.check_model, model)),
        *(("data", partial(sources.check_data, source.location)) for source in data.sources),
    ]
    if api_bank.enabled:
        listed.append(("API-Bank", partial(sources.check_api_bank, api_bank)))
    listed += [
        (f"GPU of {asked.stage}", partial(gpu.check_nodes, asked, model, sft, rl)) for asked in surroundings.gpus
    ]
    return listed


def run_checks(listed: Sequence[Check]) -> list[Finding]:
    """Make the checks; what a check itself did not foresee is a problem, too, and its traceback is logged."""
    findings = []
    for name, check in listed:
        try:
            finding = Finding(name, "ok", check())
        except NotAllowed as reason:
            finding = Finding(name, "not checked", _one_line(reason))
        except UserError as problem:
            finding = Finding(name, "problem", _one_line(problem))
        except Exception as defect:
            log.exception("the check of %s failed", name)
            finding = Finding(name, "problem", f"the check failed: {type(defect).__name__}: {_one_line(defect)}")
        log.info("%s: %s: %s", finding.check, finding.outcome, finding.detail)
        findings.append(finding)
    return findings


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
