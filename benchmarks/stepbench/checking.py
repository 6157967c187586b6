"""What the checks of the fast path share: a verdict with its limit, errors as numbers, and rollouts of random ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rest_core.records import Rollout

from .work import Work

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One comparison: it passes where `value` is at most `limit`; NaN never passes."""

    name: str
    value: float
    limit: float
    why: str  # the limit is what it is

    @property
    def passed(self) -> bool:
        return self.value <= self.limit

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class Found:
    """What one part has found: its verdicts, and figures that are reported without one."""

    checks: list[Check]
    figures: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            # A part that compared nothing has shown nothing.
            "passed": bool(self.checks) and all(check.passed for check in self.checks),
            "checks": [check.to_dict() for check in self.checks],
            "figures": self.figures,
        }


def largest(found: Tensor, wanted: Tensor) -> float:
    """The largest absolute difference."""
    return float((found.double().cpu() - wanted.double().cpu()).abs().max())


def rms(found: Tensor, wanted: Tensor) -> float:
    """The root of the mean squared difference."""
    return float((found.double().cpu() - wanted.double().cpu()).square().mean().sqrt())


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found - wanted‖ / ‖wanted‖."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def relative_of_all(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The same over all tensors as one vector."""
    errors = sum(float((found[name].double() - value.double()).square().sum()) for name, value in wanted.items())
    return (errors / sum(float(value.double().square().sum()) for value in wanted.values())) ** 0.5


def random_rollouts(work: Work, vocabulary: int) -> list[Rollout]:
    """Prompts and responses of random ids and many lengths, group by group; the same each time.

    The first prompt has all of `work.prompt_tokens`, the last a fraction; each group has a response of one token, and
    one of all of `work.new_tokens`.
    """
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        found: list[int] = torch.randint(vocabulary, (count,), generator=generator).tolist()
        return found

    rollouts = []
    for number in range(work.prompts):
        prompt = ids(max(1, work.prompt_tokens * (work.prompts - number) // work.prompts))
        for place in range(work.group):
            length = max(1, work.new_tokens * place // max(1, work.group - 1))
            rollouts.append(Rollout(prompt, ids(length), [0.0] * length, True, 0))
    return rollouts
