"""From judged groups to what an update trains on: advantages and token weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch

from rest_core.algorithm.regions import Region
from rest_core.algorithm.rest import ResT
from rest_core.model.batch import pad_rows
from rest_core.records import Rollout
from rest_core.training.groups import Groups
from rest_core.training.update import Experience


def make_experience(
    groups: Groups,
    algorithm: ResT,
    step: int,
    *,
    entropies: Callable[[list[Rollout]], list[list[float]]],
    gather: Callable[[list[Any]], list[Any]],
    process: int,
) -> Experience:
    """This process's rollouts with their weights.

    Weights are made of the rollouts of all processes at once, before any split: schemes that compare tokens with
    the rest of the rollout give the same on any number of processes.

    Args:
        entropies: the entropies (nats) of the sampling policy at every token, by one forward; for engines that do not
            give them.
        gather: joins the lists of all processes, in their order; every process calls it.
        process: which of them this is.
    """
    rollouts = [rollout for group in groups.rollouts for rollout in group]
    untrained = groups.untrained.reshape(-1)  # (B,)
    judgements = chain.from_iterable(groups.judgements)
    own = [
        (rollout.response_ids, judgement.regions.tolist(), left_out)
        for rollout, judgement, left_out in zip(rollouts, judgements, untrained.tolist(), strict=True)
    ]
    every = gather(own)
    width = max(len(row[0]) for row in every)
    ids, regions = (
        pad_rows([row[n] for row in every], width, torch.int64, fill) for n, fill in ((0, 0), (1, Region.OTHER))
    )
    mask = pad_rows([[1] * len(row[0]) for row in every], width, torch.bool)
    compared = mask & ~torch.tensor([row[2] for row in every])[:, None]  # untrained rows are compared with nothing
    sampling_entropies = None
    if algorithm.wants_entropies(regions, compared):
        values = [rollout.entropies for rollout in rollouts]
        if any(gather([row is None for row in values])):  # the same answer on every process: a forward meets
            values = entropies(rollouts)  # type: ignore[assignment]
        sampling_entropies = pad_rows(gather(values), width, torch.float32)
    weights = algorithm.weights(ids, regions, compared, sampling_entropies, step)
    start = sum(gather([len(own)])[:process])
    mine = slice(start, start + len(own))
    everyone = torch.tensor(gather(groups.rewards[~groups.dropped].tolist()), dtype=torch.float64)  # (P', G)
    return Experience(
        rollouts=rollouts,
        advantages=algorithm.advantages(groups.rewards, everyone).reshape(-1).float(),  # 0 in a dropped group
        regions=regions[mine],
        mask=mask[mine],
        weights=weights[mine],
        untrained=untrained,
    )
