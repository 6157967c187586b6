"""What is reported of a training step: scalars over all processes, and a table of completions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rest_core.algorithm.advantages import zero_variance
from rest_core.algorithm.entropy import region_sums
from rest_core.algorithm.regions import Region
from rest_core.algorithm.rest import Judgement
from rest_core.memory import peak_memory_gib
from rest_core.training.groups import Groups, plain_text
from rest_core.training.sampling import Resampled
from rest_core.training.tasks import Task
from rest_core.training.update import Experience

LONGEST_PROMPT = 2000  # characters of a prompt in a table of completions


def step_metrics(
    groups: Groups,
    experience: Experience,
    region_entropy: Tensor,
    resampled: Resampled,
    seconds: dict[str, float],
    gather: Callable[[list[Any]], list[Any]],
) -> dict[str, float]:
    """Rewards, lengths, weights and entropies by region, and throughput.

    Args:
        region_entropy: (R,) nats, of the tokens of this step; nan where a region has none.
        seconds: of each phase ("seconds/rollout" …).
        gather: joins the lists of all processes; every process calls it.
    """
    rollouts, kept, rewards = experience.rollouts, groups.kept(), groups.rewards[~groups.dropped]
    local = {
        "reward/total": rewards.reshape(-1).tolist(),
        "reward/format": [judgement.reward.format for group in kept for judgement in group],
        "reward/correctness": [judgement.reward.correctness for group in kept for judgement in group],
        "reward/well_formed": [float(judgement.response.well_formed) for group in kept for judgement in group],
        "reward/zero_variance_share": zero_variance(rewards).float().tolist(),
        "response/tokens": [len(rollout.response_ids) for rollout in rollouts],
        "response/truncated_share": [float(not rollout.finished) for rollout in rollouts],
    }
    called = gather([bool(j.response.calls) for judged in _that_should_call(groups) for j in judged])
    if groups.overlong is not None:
        local["reward/overlong"] = groups.overlong[~groups.dropped].reshape(-1).tolist()
    everything = {name: gather(values) for name, values in local.items()}
    metrics = {name: sum(values) / len(values) for name, values in everything.items()}
    if called:
        metrics["response/call_share"] = sum(called) / len(called)
    totals = torch.tensor(everything["reward/total"], dtype=torch.float64)
    kept_tokens = sum(everything["response/tokens"])
    generated = kept_tokens + sum(gather([resampled.discarded]))
    metrics |= {
        "reward/std": totals.std().item() if len(totals) > 1 else 0.0,
        "tokens/generated": float(generated),
        "tokens_per_second/rollout": generated / max(1e-9, seconds["seconds/rollout"]),
        "tokens_per_second/update": kept_tokens / max(1e-9, seconds["seconds/update"]),
        "memory/peak_gib": peak_memory_gib(),
        "seconds/step": sum(seconds.values()),
    }
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


def _that_should_call(groups: Groups) -> list[list[Judgement]]:
    """The groups whose reference makes a call."""
    return [judged for task, judged in zip(groups.tasks, groups.judgements, strict=True) if task.reference.calls]


def resampling_metrics(resampled: Resampled, gather: Callable[[list[Any]], list[Any]]) -> dict[str, float]:
    """What the extra rounds of a step came to; `gather` as in `step_metrics`."""
    return {
        "resample/rounds": float(resampled.rounds),
        "resample/replaced_groups": float(sum(gather([resampled.replaced]))),
        "tokens/discarded": float(sum(gather([resampled.discarded]))),
    }


def function_metrics(groups: Groups, gather: Callable[[list[Any]], list[Any]]) -> dict[str, float]:
    """What reward functions gave and logged, and how many groups were dropped; `gather` as in `step_metrics`."""
    parts = [
        (f"reward/function/{name}", x) for given in groups.functions for name in given.parts for x in given.parts[name]
    ]
    logged = [pair for given in groups.functions for pair in given.metrics]
    values: dict[str, list[float]] = {}
    for name, value in gather(parts + logged):
        values.setdefault(name, []).append(value)
    dropped = float(sum(gather(groups.dropped.tolist())))
    return {name: sum(each) / len(each) for name, each in values.items()} | {"reward/dropped_groups": dropped}


def _asked(task: Task) -> str:
    """The end of a task's last message; "" where the task has no text. Each row of a table has it."""
    if task.sample is None or not task.sample.prompt:
        return ""
    text = task.sample.prompt[-1].content
    return text if len(text) <= LONGEST_PROMPT else f"…{text[-LONGEST_PROMPT:]}"


def completions(groups: Groups, step: int) -> list[dict[str, Any]]:
    """One row a response of this process, for people to read."""
    rows = []
    for place, (task, rollouts, judgements, functions) in enumerate(
        zip(groups.tasks, groups.rollouts, groups.judgements, groups.functions, strict=True)
    ):
        for n, (rollout, judgement) in enumerate(zip(rollouts, judgements, strict=True)):
            row = {
                "step": step,
                "sample": task.id,
                "prompt": _asked(task),
                "tools": ", ".join(tool.name for tool in task.tools),
                "response": plain_text(judgement),
                "reference": task.reference.text,
                "reward": float(groups.rewards[place, n]) if functions.failure is None else None,
                "format": judgement.reward.format,
                "correctness": judgement.reward.correctness,
                "tokens": len(rollout.response_ids),
                "finished": rollout.finished,
                "problems": "; ".join(judgement.response.problems),
            }
            if groups.overlong is not None:
                row["overlong"] = float(groups.overlong[place, n])
            row |= {f"function/{name}": values[n] for name, values in functions.parts.items()}
            row |= {f"extra/{name}": values[n] for name, values in functions.extra.items()}
            rows.append(row if functions.failure is None else {**row, "dropped": functions.failure})
    return rows
