"""What is measured of the policy beside its training: the reward before and after, and task accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import torch

from rest_core.algorithm.rest import ResT
from rest_core.algorithm.success import succeeds
from rest_core.evaluation.statistics import t_interval
from rest_core.seeds import derive
from rest_core.training.sampling import Sampler
from rest_core.training.tasks import Task

Rewards = tuple[float | None, ...]
"""One a prompt; None where there is no reward."""


class Probe:
    """Measures the policy that `sampler` samples from.

    Args:
        held_out: the prompts that task accuracy is measured on, and the reward where they are enough.
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

    def rewards(self) -> Rewards | None:
        """Mean reward of a group of sampled responses to each of some prompts, on the ranges of the last step.

        The prompts are held-out ones where there are enough of them, else those that are trained first. The same
        prompts, the same random numbers and the same reward before and after a training, so that the two can be
        compared. An entry is None where a reward function gave no value; there are no rewards at all where
        `rl.reward_probe_prompts` is 0.
        """
        count = min(self._config.reward_probe_prompts, max(len(self._held_out), len(self._sampler.tasks)))
        if not count:
            return None
        mine = range(self._schedule.process, count, self._schedule.processes)
        if len(self._held_out) >= count:
            tasks = [self._held_out[n] for n in mine]
        else:
            tasks = [self._sampler.tasks[n] for n in self._schedule.visited(mine)]
        seeds = [derive(self._config.seed, "probe", n) for n in mine]
        rollouts = self._sampler.responses(tasks, seeds, "reward probe")
        groups = self._sampler.judge(tasks, rollouts, self._config.steps, where="reward probe")
        means = zip(groups.rewards.mean(dim=1).tolist(), groups.dropped.tolist(), strict=True)
        found = list(zip(mine, [None if gone else mean for mean, gone in means], strict=True))
        return tuple(mean for _, mean in sorted(self._gather(found), key=lambda one: one[0]))

    def change(self, before: Rewards, after: Rewards) -> dict[str, float]:
        """What a training has changed: means, their paired difference with Student's 95 % interval, prompts."""
        pairs = [(old, new) for old, new in zip(before, after, strict=True) if old is not None and new is not None]
        if not pairs:
            return {}
        changes = [new - old for old, new in pairs]
        kind = "held_out" if len(self._held_out) >= len(before) else "training"
        figures = {
            "reward/before": fmean(old for old, _ in pairs),
            "reward/after": fmean(new for _, new in pairs),
            "reward/change": fmean(changes),
            f"reward/{kind}_prompts": float(len(pairs)),
        }
        if (interval := t_interval(changes)) is not None:
            figures |= {"reward/low/change": interval.low, "reward/high/change": interval.high}
        return figures

    def accuracy_is_due(self, step: int) -> bool:
        """Whether task accuracy is to be measured after a step."""
        every = self._config.evaluate_every
        if every is None or (step == 0 and not self._config.evaluate_at_start):
            return False
        return step % every == 0 or step == self._config.steps

    def task_accuracy(self) -> dict[str, float]:
        """How many responses to held-out prompts do the task exactly, and how long they are.

        Responses are the most likely ones, or `rl.evaluate_samples` sampled ones a prompt, with the same random numbers
        in each measurement. What counts is `rest_core.algorithm.success`, never the reward.

        Returns:
            `accuracy`, a share; `call_accuracy` and `irrelevance_accuracy`, the same where calls are wanted and where
            none is, if there are such prompts; `response_tokens`, a mean.
        """
        generator = torch.Generator().manual_seed(derive(self._config.seed, "evaluation"))
        order = torch.randperm(len(self._held_out), generator=generator).tolist()
        chosen = sorted(order[: self._config.evaluate_prompts])
        mine = chosen[self._schedule.process :: self._schedule.processes]
        tasks, samples = [self._held_out[n] for n in mine], self._config.evaluate_samples
        seeds = [derive(self._config.seed, "evaluation", n) for n in mine] if samples else None
        groups = self._sampler.responses(tasks, seeds, "evaluation", samples=samples) if tasks else []
        outcomes = [
            (
                bool(task.reference.calls),
                succeeds(self._algorithm.read(rollout.response_ids, task.tools)[0], task.reference),
                len(rollout.response_ids),
            )
            for task, rollouts in zip(tasks, groups, strict=True)
            for rollout in rollouts
        ]
        every = self._gather(outcomes)
        found = {
            "accuracy": [success for _, success, _ in every],
            "call_accuracy": [success for calls, success, _ in every if calls],
            "irrelevance_accuracy": [success for calls, success, _ in every if not calls],
            "response_tokens": [tokens for _, _, tokens in every],
        }
        return {name: fmean(values) for name, values in found.items() if values}
