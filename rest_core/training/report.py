"""What is reported of a training step: scalars over all processes, and a table of completions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rest_core.algorithm.advantages import zero_variance
from rest_core.algorithm.entropy import region_sums
from rest_core.algorithm.regions import Region
from rest_core.memory import peak_memory_gib
from rest_core.records import Rollout
from rest_core.training.judging import Judged, Task, plain_text
from rest_core.training.update import Experience


def step_metrics(
    judged: Judged,
    experience: Experience,
    region_entropy: Tensor,
    seconds: dict[str, float],
    gather: Callable[[list[Any]], list[Any]],
    *,
    discarded: int = 0,
) -> dict[str, float]:
    """Rewards, lengths, weights and entropies by region, and throughput.

    Args:
        region_entropy: (R,) nats, of the tokens of this step; nan where a region has none.
        seconds: of each phase ("seconds/rollout" …).
        discarded: tokens that this process sampled beside these rollouts, in groups that the step did not keep.
        gather: joins the lists of all processes; every process calls it.
    """
    rollouts, kept, rewards = experience.rollouts, judged.kept(), judged.rewards[~judged.dropped]
    local = {
        "total": rewards.reshape(-1).tolist(),
        "format": [judgement.reward.format for group in kept for judgement in group],
        "correctness": [judgement.reward.correctness for group in kept for judgement in group],
        "well_formed": [float(judgement.response.well_formed) for group in kept for judgement in group],
        "tokens": [len(rollout.response_ids) for rollout in rollouts],
        "truncated": [float(not rollout.finished) for rollout in rollouts],
        "flat": zero_variance(rewards).float().tolist(),
    }
    if judged.overlong is not None:
        local["overlong"] = judged.overlong[~judged.dropped].reshape(-1).tolist()
    everything = {name: gather(values) for name, values in local.items()}
    mean = {name: sum(values) / len(values) for name, values in everything.items()}
    kept_tokens = sum(everything["tokens"])
    generated = kept_tokens + sum(gather([discarded]))
    totals = torch.tensor(everything["total"], dtype=torch.float64)
    deviation = totals.std().item() if len(totals) > 1 else 0.0
    metrics = {
        "reward/total": mean["total"],
        "reward/std": deviation,
        "reward/format": mean["format"],
        "reward/correctness": mean["correctness"],
        "reward/well_formed": mean["well_formed"],
        "reward/zero_variance_share": mean["flat"],
        "response/tokens": mean["tokens"],
        "response/truncated_share": mean["truncated"],
        "tokens/generated": float(generated),
        "tokens_per_second/rollout": generated / max(1e-9, seconds["seconds/rollout"]),
        "tokens_per_second/update": kept_tokens / max(1e-9, seconds["seconds/update"]),
        "memory/peak_gib": peak_memory_gib(),
        "seconds/step": sum(seconds.values()),
    }
    if "overlong" in mean:
        metrics["reward/overlong"] = mean["overlong"]
    weight_sums, weight_counts = (
        torch.tensor(gather([values.tolist()])).sum(dim=0)
        for values in region_sums(experience.weights, experience.regions, experience.trained_mask())
    )
    for region in Region:
        name = region.name.lower()
        if not math.isnan(float(region_entropy[region])):
            metrics[f"entropy/{name}"] = float(region_entropy[region])
        if weight_counts[region]:
            metrics[f"weight/{name}"] = float(weight_sums[region] / weight_counts[region])
            metrics[f"tokens/{name}"] = float(weight_counts[region])
    return metrics | seconds


def function_metrics(judged: Judged, gather: Callable[[list[Any]], list[Any]]) -> dict[str, float]:
    """What reward functions gave and logged, and how many groups were dropped; `gather` as in `step_metrics`."""
    parts = [
        (f"reward/function/{name}", x) for score in judged.scores for name in score.parts for x in score.parts[name]
    ]
    logged = [pair for score in judged.scores for pair in score.metrics]
    values: dict[str, list[float]] = {}
    for name, value in gather(parts + logged):
        values.setdefault(name, []).append(value)
    dropped = float(sum(gather(judged.dropped.tolist())))
    return {name: sum(each) / len(each) for name, each in values.items()} | {"reward/dropped_groups": dropped}


def completions(
    tasks: Sequence[Task], groups: Sequence[Sequence[Rollout]], judged: Judged, step: int
) -> list[dict[str, Any]]:
    """One row a response of this process, for people to read."""
    rows = []
    for place, (task, group, judgements, score, rewards) in enumerate(
        zip(tasks, groups, judged.judgements, judged.scores, judged.rewards.tolist(), strict=True)
    ):
        for n, (rollout, judgement) in enumerate(zip(group, judgements, strict=True)):
            row = {
                "step": step,
                "sample": task.id,
                "response": plain_text(judgement),
                "reference": task.reference.text,
                "reward": rewards[n] if score.failure is None else None,
                "format": judgement.reward.format,
                "correctness": judgement.reward.correctness,
                "tokens": len(rollout.response_ids),
                "finished": rollout.finished,
                "problems": "; ".join(judgement.response.problems),
            }
            if judged.overlong is not None:
                row["overlong"] = float(judged.overlong[place, n])
            row |= {f"function/{name}": values[n] for name, values in score.parts.items()}
            row |= {f"extra/{name}": values[n] for name, values in score.extra.items()}
            rows.append(row if score.failure is None else {**row, "dropped": score.failure})
    return rows
