"""The state of a run that KFP gives to the exit task, and where KFP's pages are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rest_core.config import Section

Verdict = Literal["succeeded", "failed", "stopped", "unknown"]

# KFP's backends up to 2.15 give MLMD's states (COMPLETE, CACHED), later ones and kfp.local those of the SDK.
# RUNNING, which some give to a run that contains a loop, says nothing.
_VERDICTS: dict[str, Verdict] = {
    "SUCCEEDED": "succeeded",
    "COMPLETE": "succeeded",
    "CACHED": "succeeded",
    "FAILED": "failed",
    "CANCELLED": "stopped",
    "CANCELED": "stopped",
}


class FinalStatus(Section):
    """kfp.dsl.PipelineTaskFinalStatus, field by field."""

    state: str | None = None
    pipeline_job_resource_name: str | None = None
    pipeline_task_name: str | None = None
    error_code: int | None = None
    error_message: str | None = None

    @property
    def verdict(self) -> Verdict | None:
        """How the run ended; None where KFP does not say."""
        return _VERDICTS.get((self.state or "").upper())


class Links(Section):
    """Addresses that a report links to."""

    kfp: str | None = Field(None, description="of KFP's pages, as people open them")

    def kfp_run(self, run_id: str | None) -> str | None:
        """The page of a KFP run."""
        return f"{self.kfp.rstrip('/')}/#/runs/details/{run_id}" if self.kfp and run_id else None
