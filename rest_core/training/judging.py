"""From the responses of a step to their rewards: regions and the project's own reward, and reward functions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rest_core.algorithm.advantages import group_advantages
from rest_core.algorithm.overlong import overlong_penalty
from rest_core.algorithm.rest import Judgement, ResT
from rest_core.config import RlConfig
from rest_core.errors import UserError
from rest_core.records import Rollout, Sample
from rest_core.response import Response
from rest_core.training.reward_functions import GroupScore, RewardFunctions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """One training prompt as ids, with its parsed reference; `sample` is what reward functions are shown."""

    id: str
    prompt_ids: list[int]
    reference: Response
    sample: Sample | None = None


@dataclass(frozen=True)
class Judged:
    """This process's responses of a step with their rewards; P prompts of G responses."""

    judgements: list[list[Judgement]]
    scores: list[GroupScore]  # P, of the reward functions
    rewards: Tensor  # (P, G) totals in float64, 0 in a dropped group
    dropped: Tensor  # (P,) bool: groups that a reward function could not score
    overlong: Tensor | None = None  # (P, G) the penalty on long responses, a part of the totals; None = there is none

    def kept(self) -> list[list[Judgement]]:
        return [group for group, gone in zip(self.judgements, self.dropped.tolist(), strict=True) if not gone]

    def untrained(self, groups: Sequence[Sequence[Rollout]], *, mask_truncated: bool) -> Tensor:
        """(P, G) bool: responses that are not trained on, whatever their advantage."""
        left = self.dropped[:, None].expand(self.rewards.shape)
        if mask_truncated:
            cut = [[not rollout.finished for rollout in group] for group in groups]
            left = left | torch.tensor(cut, dtype=torch.bool).reshape(self.rewards.shape)
        return left

    def with_signal(self, groups: Sequence[Sequence[Rollout]], *, mask_truncated: bool) -> list[bool]:
        """P: groups in which a response that is trained on has an advantage other than 0."""
        trained = ~self.untrained(groups, mask_truncated=mask_truncated)
        found: list[bool] = (trained & (group_advantages(self.rewards, std="none") != 0)).any(dim=1).tolist()
        return found

    def exchange(self, place: int, other: Judged, n: int) -> None:
        """Put group `n` of `other` in the place of the group at `place`."""
        self.judgements[place], self.scores[place] = other.judgements[n], other.scores[n]
        self.rewards[place], self.dropped[place] = other.rewards[n], other.dropped[n]
        if self.overlong is not None and other.overlong is not None:
            self.overlong[place] = other.overlong[n]


class Judge:
    """Rewards groups of responses; a group that cannot be scored is dropped, loudly.

    Args:
        gather: joins the lists of all processes, in their order; every process calls it.
        main: whether this process is the one that logs.
    """

    def __init__(
        self, algorithm: ResT, config: RlConfig, *, gather: Callable[[list[Any]], list[Any]], main: bool
    ) -> None:
        self.functions = RewardFunctions(config)
        self._algorithm, self._config, self._gather, self._main = algorithm, config, gather, main

    def __call__(
        self,
        tasks: Sequence[Task],
        groups: Sequence[Sequence[Rollout]],
        step: int,
        *,
        where: str,
        last_good: str,
        spare: bool = False,
    ) -> Judged:
        """Judge this process's responses to `tasks`; `where` and `last_good` (a checkpoint) go into messages.

        Args:
            spare: the step can do without these groups: it does not matter if none can be scored.

        Raises:
            UserError: a reward is not a finite number, or no group of any process could be scored.
        """
        judgements = [
            [self._algorithm.judge(rollout.response_ids, task.reference, step) for rollout in group]
            for task, group in zip(tasks, groups, strict=True)
        ]
        scores = [
            self.functions.score(task.sample, [plain_text(j) for j in judged], [r.response_ids for r in group], step)
            for task, group, judged in zip(tasks, groups, judgements, strict=True)
        ]
        shape = (len(tasks), self._config.group_size)  # (P, G); no prompt at all where there are more processes

        def table(values: Sequence[Sequence[float]]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64).reshape(shape)

        own = table([[judgement.reward.total for judgement in group] for group in judgements])
        rewards = self._config.reward_weight * own + table([score.totals for score in scores])
        overlong = None
        if (settings := self._config.overlong) is not None:
            overlong = overlong_penalty(
                table([[len(rollout.response_ids) for rollout in group] for group in groups]),
                limit=self._config.max_response_tokens,
                buffer=settings.buffer,
                penalty=settings.penalty,
            )
            rewards = rewards + overlong
        dropped = torch.tensor([score.failure is not None for score in scores], dtype=torch.bool)
        rewards[dropped] = 0.0
        if not bool(rewards.isfinite().all()):
            raise UserError(f"{where}: a reward is not a finite number; {last_good}")
        failures = self._gather([score.failure for score in scores])
        reasons = [failure for failure in failures if failure is not None]
        if reasons and self._main:
            log.warning("%s: %d of %d groups dropped: %s", where, len(reasons), len(failures), reasons[0])
        if len(reasons) == len(failures) and not spare:
            raise UserError(f"{where}: no group could be scored: {reasons[0]}; {last_good}")
        return Judged(judgements, scores, rewards, dropped, overlong)


def plain_text(judgement: Judgement) -> str:
    """The response as plain UTF-8; what is none becomes U+FFFD."""
    return judgement.response.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
