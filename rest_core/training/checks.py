"""What is refused before a training begins, and what may change between two starts of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rest_core.config import ModelConfig, RlConfig
from rest_core.errors import UserError

# What a user changes to get a stopped training going again: it resumes from its checkpoint all the same.
_MAY_CHANGE = {
    "engine",
    "learning_rate",
    "max_grad_norm",
    "max_loss",
    "micro_batch_tokens",
    "rollout_batch_tokens",
    "gradient_checkpointing",
    "checkpoint_every",
    "keep_checkpoints",
    "table_every",
    # and what changes nothing in the training itself
    "mirror",
    "grace_seconds",
    "evaluate_every",
    "evaluate_at_start",
    "evaluate_samples",
    "final",
}


def identity(inputs: str, model: ModelConfig, config: RlConfig) -> dict[str, Any]:
    """What decides a training's result, as JSON values: a checkpoint of anything else is foreign."""
    return {
        "inputs": inputs,
        "model": model.model_dump(mode="json"),
        "rl": config.model_dump(mode="json", exclude=_MAY_CHANGE),
    }


def check(config: RlConfig, lengths: Sequence[int], *, held_out: Sequence[int]) -> None:
    """Refuse prompts that the settings do not fit.

    Args:
        lengths: tokens of each training prompt.
        held_out: tokens of each held-out prompt.
    """
    if not lengths:
        raise UserError("there are no training prompts: the dataset's split 'rl' is empty")
    response = config.max_response_tokens
    together = max(config.group_size, config.evaluate_samples)  # responses to a prompt that are sampled at once
    budgets = {  # the least that each budget has to hold at once
        "micro_batch_tokens": ("response", max(lengths), 1),
        "rollout_batch_tokens": (f"group of {together}", max(*lengths, *held_out, 0), together),
    }
    for name, (what, longest, responses) in budgets.items():
        needed = longest + responses * response
        if getattr(config, name) < needed:
            raise UserError(
                f"rl.{name} ({getattr(config, name)}) does not hold one {what}: the longest prompt has {longest} "
                f"tokens, a response up to {response} (rl.max_response_tokens); set rl.{name}={needed} or more"
            )
    if config.evaluate_every is not None and not held_out:
        raise UserError(
            "rl.evaluate_every is set, but there are no held-out prompts (the dataset's split 'rl_validation' is "
            "empty): prepare the data with a larger data.validation_fraction, or set rl.evaluate_every=null"
        )
