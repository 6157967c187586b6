"""What a training works with: the model as it is trained, the engine that samples, the update."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from rest_core.config import RlConfig
from rest_core.errors import UserError
from rest_core.model.context import context_of
from rest_core.model.loading import with_lora
from rest_core.model.logprobs import Policy
from rest_core.model.parameters import without_wrapper
from rest_core.rollout.create import create_engine
from rest_core.rollout.engine import Engine
from rest_core.training.distributed import prepare, prepare_frozen
from rest_core.training.update import PolicyUpdate


def set_up(
    model: Any,
    tokenizer: Any,
    config: RlConfig,
    accelerator: Accelerator,
    *,
    dtype: torch.dtype,
    max_tokens: int,
    before_update: Callable[..., None],
) -> tuple[Any, Engine, PolicyUpdate]:
    """The model (with adapters, where LoRA is configured), an engine that holds its weights, and its update.

    Args:
        dtype: compute type of the rollouts.
        max_tokens: the longest prompt and response together.
        before_update: called before each optimizer step.

    Raises:
        UserError: the model cannot see so many tokens.
    """
    context = context_of(without_wrapper(model).config)
    if context is not None and max_tokens > context:
        raise UserError(
            f"rl.max_response_tokens: the longest prompt and response have {max_tokens} tokens together, the model "
            f"sees {context}; lower rl.max_response_tokens or data.max_prompt_tokens"
        )
    reference = None
    if config.loss.kl_coefficient:
        reference = Policy(copy.deepcopy(model).requires_grad_(False).eval()).to(accelerator.device)
    if config.lora is not None:
        model = with_lora(model, config.lora)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.to(accelerator.device).train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    optimizer.register_step_pre_hook(before_update)
    engine = create_engine(config.engine, model, tokenizer, dtype=dtype, max_tokens=max_tokens)
    # From here on the parameters may be shards: whoever wants whole ones has made its copy.
    policy, prepared = prepare(accelerator, Policy(model), optimizer)
    if reference is not None:
        reference = prepare_frozen(accelerator, reference)
    update = PolicyUpdate(
        policy, prepared, accelerator, config, pad_id=tokenizer.pad_token_id, reference_policy=reference
    )
    return model, engine, update
