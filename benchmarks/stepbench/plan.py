"""How long a run will take, said before it begins.

The estimate is rough: measured once on two cores with a model of 135 million parameters, and scaled by parameters
and cores; on a GPU by arithmetic at a share of an H100's peak. After each round the time that is left is counted from
what has been measured.
"""

from __future__ import annotations

from dataclasses import dataclass

from .settings import OURS, TRL_BEST, TRL_DEFAULT
from .work import Work

_PARAMETERS = 135e6
_CORES = 2


@dataclass(frozen=True)
class _Cost:
    """Seconds on two cores with 135 million parameters."""

    decode_step: float  # a decode step, whatever its batch
    decode_row: float  # more for each row in it
    prompt_token: float  # prefill
    update_token: float  # forward and backward


_CPU = {
    OURS: _Cost(0.030, 0.0025, 0.0006, 0.0035),
    TRL_BEST: _Cost(0.120, 0.0015, 0.0006, 0.0066),
    TRL_DEFAULT: _Cost(0.120, 0.0015, 0.0006, 0.0090),
}
_GPU_DECODE_STEP = {OURS: 0.010, TRL_BEST: 0.040, TRL_DEFAULT: 0.040}
_GPU_FLOPS = {OURS: 300e12, TRL_BEST: 150e12, TRL_DEFAULT: 110e12}
LOADING = {"cpu": 15.0, "cuda": 30.0}


def step_seconds(arm: str, work: Work, *, device: str, parameters: float, cores: int) -> float:
    """Estimated seconds of one step."""
    tokens = work.useful if arm == OURS else work.copied
    if device == "cuda":
        return work.new_tokens * _GPU_DECODE_STEP[arm] + 6 * parameters * tokens / _GPU_FLOPS[arm]
    cost = _CPU[arm]
    prefilled = work.prompts * work.prompt_tokens * (1 if arm == OURS else work.group)
    seconds = (
        work.new_tokens * (cost.decode_step + cost.decode_row * work.responses)
        + prefilled * cost.prompt_token
        + tokens * cost.update_token
    )
    return seconds * parameters / _PARAMETERS * _CORES / cores


def run_seconds(arms: list[str], work: Work, rounds: int, *, device: str, parameters: float, cores: int) -> float:
    """Estimated seconds of all rounds of one work, loading included."""
    each = sum(step_seconds(arm, work, device=device, parameters=parameters, cores=cores) for arm in arms)
    return rounds * each + len(arms) * LOADING[device]
