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
from rest_core.records import Rollout
from rest_core.training.reward_functions import FunctionRewards, RewardFunctions
from rest_core.training.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Groups:
    """This process's groups of a step: P tasks, G responses to each, and their rewards."""

    tasks: list[Task]
    rollouts: list[list[Rollout]]
    judgements: list[list[Judgement]]
    functions: list[FunctionRewards]  # P
    rewards: Tensor  # (P, G) totals in float64, 0 in a dropped group
    dropped: Tensor  # (P,) bool: groups that a reward function could not score
    untrained: Tensor  # (P, G) bool: responses that are not trained on, whatever their advantage
    overlong: Tensor | None = None  # (P, G) the penalty on long responses, a part of the totals; None = there is none

    def kept(self) -> list[list[Judgement]]:
        return [group for group, gone in zip(self.judgements, self.dropped.tolist(), strict=True) if not gone]

    def with_signal(self) -> list[bool]:
        """P: groups in which a response that is trained on has an advantage other than 0."""
        advantages = group_advantages(self.rewards, std="none")
        found: list[bool] = (~self.untrained & (advantages != 0)).any(dim=1).tolist()
        return found

    def replace(self, place: int, other: Groups, n: int) -> None:
        """Put group `n` of `other` in the place of the group at `place`."""
        for name, values in vars(self).items():
            if values is not None:
                values[place] = getattr(other, name)[n]


class Judge:
    """Rewards groups of responses; a group that cannot be scored is dropped, with a warning.

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
        rollouts: Sequence[Sequence[Rollout]],
        step: int,
        *,
        where: str,
        spare: bool = False,
    ) -> Groups:
        """Judge this process's responses to `tasks`.

        Args:
            where: begins the messages.
            spare: the step can do without these groups: it does not matter if none can be scored.

        Raises:
            UserError: a reward is not a finite number, or no group of any process could be scored.
        """
        config = self._config
        judgements = [
            [self._algorithm.judge(rollout.response_ids, task.reference, step, task.tools) for rollout in group]
            for task, group in zip(tasks, rollouts, strict=True)
        ]
        functions = [
            self.functions.score(task.sample, [plain_text(j) for j in judged], [r.response_ids for r in group], step)
            for task, group, judged in zip(tasks, rollouts, judgements, strict=True)
        ]
        shape = (len(tasks), config.group_size)  # (P, G); no prompt at all where there are more processes

        def table(values: Sequence[Sequence[float]], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(values, dtype=dtype).reshape(shape)

        own = table([[judgement.reward.total for judgement in group] for group in judgements])
        rewards = config.reward_weight * own + table([given.totals for given in functions])
        overlong = None
        if config.overlong is not None:
            lengths = table([[len(rollout.response_ids) for rollout in group] for group in rollouts])
            buffer, penalty = config.overlong.buffer, config.overlong.penalty
            overlong = overlong_penalty(lengths, limit=config.max_response_tokens, buffer=buffer, penalty=penalty)
            rewards = rewards + overlong
        dropped = torch.tensor([given.failure is not None for given in functions], dtype=torch.bool)
        rewards[dropped] = 0.0
        if not bool(rewards.isfinite().all()):
            raise UserError(f"{where}: a reward is not a finite number")
        self._report_failures([given.failure for given in functions], where, spare)
        cut = table([[not rollout.finished for rollout in group] for group in rollouts], torch.bool)
        untrained = dropped[:, None] | (cut & config.mask_truncated)
        copied = [list(group) for group in rollouts]
        return Groups(list(tasks), copied, judgements, functions, rewards, dropped, untrained, overlong)

    def _report_failures(self, own: Sequence[str | None], where: str, spare: bool) -> None:
        failures = self._gather(list(own))
        reasons = [failure for failure in failures if failure is not None]
        if reasons and self._main:
            log.warning("%s: %d of %d groups dropped: %s", where, len(reasons), len(failures), reasons[0])
        if len(reasons) == len(failures) and not spare:
            raise UserError(f"{where}: no group could be scored: {reasons[0]}")


def plain_text(judgement: Judgement) -> str:
    """The response as plain UTF-8; what is none becomes U+FFFD."""
    return judgement.response.text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
