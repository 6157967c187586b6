"""Which tasks a step trains on, and with which random numbers.

All of it follows from `rl.seed`, the step's number and the place in the step's list of prompts. So nothing has to be
stored for an exact resume, and the result does not depend on the number of processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from rest_core.config import RlConfig
from rest_core.seeds import derive


@dataclass(frozen=True)
class Schedule:
    """The order in which one of several processes takes `tasks` tasks.

    A step samples its prompts in round 0. Rounds from 1 on are the extra ones of `rl.resample_rounds`; they take
    further visits, which come after all that are planned for the whole training.
    """

    config: RlConfig
    tasks: int
    process: int = 0
    processes: int = 1

    @property
    def places(self) -> range:
        """Places in a step's list of prompts that belong to this process."""
        return range(self.process, self.config.prompts_per_step, self.processes)

    def visits(self, step: int, places: Iterable[int], number: int = 0) -> list[int]:
        """The visits, counted from 0 over the whole training, that fill `places` of a step in round `number`."""
        rounds = self.config.resample_rounds
        before = self.config.steps + (step - 1) * rounds + number - 1 if number else step - 1
        return [before * self.config.prompts_per_step + place for place in places]

    def visited(self, visits: Iterable[int]) -> list[int]:
        """Indices of the tasks that are visited: seeded permutations without end."""
        orders: dict[int, list[int]] = {}
        visited = []
        for visit in visits:
            epoch, place = divmod(visit, self.tasks)
            if epoch not in orders:
                generator = torch.Generator().manual_seed(derive(self.config.seed, "order", epoch))
                orders[epoch] = torch.randperm(self.tasks, generator=generator).tolist()
            visited.append(orders[epoch][place])
        return visited

    def seeds(self, step: int, places: Sequence[int], number: int = 0) -> list[int]:
        """The seed of the responses at each place."""
        extra = [number] if number else []
        return [derive(self.config.seed, "rollout", step, place, *extra) for place in places]
