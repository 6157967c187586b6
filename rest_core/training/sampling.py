"""From tasks to judged groups of responses, and the extra rounds for groups that carry no signal."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from rest_core.errors import NotFiniteLogits, UserError
from rest_core.memory import out_of_memory_names
from rest_core.records import Rollout
from rest_core.rollout.engine import Engine
from rest_core.training.groups import Groups, Judge
from rest_core.training.schedule import Schedule
from rest_core.training.tasks import Task


class Sampler:
    """Samples the policy's responses and has them judged.

    Args:
        engine: holds the policy's weights.
        tasks: the training prompts, in the order that `schedule` counts them.
        main: whether this process shows the progress.
    """

    def __init__(self, engine: Engine, judge: Judge, tasks: Sequence[Task], schedule: Schedule, *, main: bool) -> None:
        self.engine, self.judge, self.tasks, self.schedule, self.main = engine, judge, tasks, schedule, main
        self.config = schedule.config

    def groups(self, step: int, number: int, places: Sequence[int], seconds: dict[str, float]) -> Groups:
        """Judged groups for `places` of a step's list of prompts.

        Args:
            number: the round: 0, or one of the extra ones, which the step can do without.
            seconds: what it takes is added here.
        """
        where = f"step {step}, extra round {number}" if number else f"step {step}"
        tasks = [self.tasks[n] for n in self.schedule.visited(self.schedule.visits(step, places, number))]
        with timed(seconds, "seconds/rollout"):
            seeds = self.schedule.seeds(step, places, number)
            rollouts = self.responses(tasks, seeds, f"{where}: rollout") if tasks else []
        with timed(seconds, "seconds/reward"):
            return self.judge(tasks, rollouts, step, where=where, spare=number > 0)

    def responses(
        self, tasks: Sequence[Task], seeds: Sequence[int] | None, where: str, *, samples: int | None = None
    ) -> list[list[Rollout]]:
        """Sampled responses to each task, a group where `samples` is None; without seeds the most likely one alone.

        Raises:
            UserError: memory has run out, or the policy's logits are no numbers; `where` begins the message.
        """
        config = self.config
        if seeds is None:
            samples, temperature = 1, 0.0
        else:
            samples, temperature = samples or config.group_size, config.temperature
        longest = max((len(task.prompt_ids) for task in tasks), default=0)
        asked = min(len(tasks) * (longest + samples * config.max_response_tokens), config.rollout_batch_tokens)
        total, hidden = len(tasks) * samples, None if self.main else True  # None: hidden where there is no terminal
        with (
            finite_logits(where, self.engine.version),
            out_of_memory_names("rl.rollout_batch_tokens", config.rollout_batch_tokens, asked),
            tqdm(total=total, desc=where, unit="response", leave=False, disable=hidden) as bar,
        ):
            return self.engine.generate(
                [task.prompt_ids for task in tasks],
                samples=samples,
                max_new_tokens=config.max_response_tokens,
                temperature=temperature,
                batch_tokens=config.rollout_batch_tokens,
                seeds=seeds,
                on_progress=bar.update,
            )


@dataclass
class Resampled:
    """What the extra rounds of a step came to, of this process."""

    rounds: int = 0
    replaced: int = 0  # groups
    discarded: int = 0  # tokens, of groups that were replaced and of further ones that had no signal either


def resample(
    groups: Groups,
    rounds: int,
    sample: Callable[[int, list[int]], Groups],
    gather: Callable[[list[Any]], list[Any]],
) -> Resampled:
    """Replace groups without signal by groups of further prompts that have one, in place.

    Args:
        rounds: at most so many; all processes take as many as the one that needs most.
        sample: (round, indices in `groups`) → judged groups of further prompts.
        gather: joins the lists of all processes; every process calls it.
    """
    done = Resampled()
    for number in range(1, rounds + 1):
        wanting = [n for n, found in enumerate(groups.with_signal()) if not found]
        if not sum(gather([len(wanting)])):
            break
        done.rounds = number
        others = sample(number, wanting)
        for n, (here, found) in enumerate(zip(wanting, others.with_signal(), strict=True)):
            discarded = groups.rollouts[here] if found else others.rollouts[n]
            done.discarded += sum(len(rollout.response_ids) for rollout in discarded)
            if found:
                done.replaced += 1
                groups.replace(here, others, n)
    return done


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Add the seconds that the block takes to `seconds[name]`."""
    start = time.perf_counter()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start


@contextmanager
def finite_logits(where: str, version: int) -> Iterator[None]:
    """NaN or infinite logits inside become a `UserError` with the likely cause; `version` counts the policy's updates.

    `where` begins the message.
    """
    try:
        yield
    except NotFiniteLogits:
        cause = (
            "it has diverged: lower rl.learning_rate or rl.max_grad_norm"
            if version
            else "it was so before the first update: take another policy, or set model.dtype=float32"
        )
        raise UserError(f"{where}: the policy's logits are NaN or infinite; {cause}") from None
