"""What is measured of the policy beside its training: the reward before and after, and task accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rest_core.algorithm.rest import ResT
from rest_core.algorithm.success import succeeds
from rest_core.seeds import derive
from rest_core.training.sampling import Sampler
from rest_core.training.tasks import Task


class Probe:
    """Measures the policy that `sampler` samples from.

    Args:
        held_out: the prompts that task accuracy is measured on.
        algorithm: reads the responses.
        gather: joins the lists of all processes; every process calls the methods.
    """

    def __init__(
        self,
        sampler: Sampler,
        held_out: Sequence[Task],
        algorithm: ResT,
        gather: Callable[[list[Any]], list[Any]],
    ) -> None:
        self._config, self._sampler, self._schedule = sampler.config, sampler, sampler.schedule
        self._held_out, self._algorithm, self._gather = held_out, algorithm, gather

    def mean_reward(self) -> float | None:
        """Mean reward of sampled responses to the prompts that are trained first, on the ranges of the last step.

        The same prompts, the same random numbers and the same reward before and after a training, so that the two
        can be compared. None where `rl.reward_probe_prompts` is 0.
        """
        count = min(self._config.reward_probe_prompts, len(self._sampler.tasks))
        if not count:
            return None
        mine = range(self._schedule.process, count, self._schedule.processes)
        tasks = [self._sampler.tasks[n] for n in self._schedule.visited(mine)]
        seeds = [derive(self._config.seed, "probe", n) for n in mine]
        rollouts = self._sampler.responses(tasks, seeds, "reward probe")
        groups = self._sampler.judge(tasks, rollouts, self._config.steps, where="reward probe")
        rewards = self._gather(groups.rewards[~groups.dropped].reshape(-1).tolist())
        return sum(rewards) / len(rewards)

    def accuracy_is_due(self, step: int) -> bool:
        """Whether task accuracy is to be measured after a step."""
        every = self._config.evaluate_every
        return every is not None and (step % every == 0 or step == self._config.steps)

    def task_accuracy(self) -> tuple[float, float]:
        """Share of held-out prompts whose most likely response does the task exactly, and mean tokens a response.

        What counts is `rest_core.algorithm.success`, never the reward.
        """
        generator = torch.Generator().manual_seed(derive(self._config.seed, "evaluation"))
        order = torch.randperm(len(self._held_out), generator=generator).tolist()
        chosen = sorted(order[: self._config.evaluate_prompts])
        tasks = [self._held_out[n] for n in chosen[self._schedule.process :: self._schedule.processes]]
        groups = self._sampler.responses(tasks, None, "evaluation") if tasks else []
        outcomes = [
            (
                succeeds(self._algorithm.read(rollout.response_ids, task.tools)[0], task.reference),
                len(rollout.response_ids),
            )
            for task, (rollout,) in zip(tasks, groups, strict=True)
        ]
        every = self._gather(outcomes)
        return sum(success for success, _ in every) / len(every), sum(tokens for _, tokens in every) / len(every)
