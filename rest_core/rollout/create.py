"""The engine that a training's configuration asks for."""

from __future__ import annotations

from typing import Any

import torch

from rest_core.config import EngineConfig, TransformersEngineConfig, VllmServerConfig
from rest_core.rollout.engine import Engine
from rest_core.token_bytes import stop_ids


def create_engine(
    config: EngineConfig,
    master: Any,
    tokenizer: Any,
    *,
    dtype: torch.dtype,
    max_tokens: int,
    setting: str = "rl.engine",
) -> Engine:
    """An engine that holds the weights of `master`, as version 0.

    Args:
        master: the policy, adapters and all; it is not changed.
        dtype: compute type of the rollouts.
        max_tokens: the longest prompt and response together.
        setting: the configuration's name of `config`, for error messages.

    Raises:
        UserError: the engine is not installed, its server does not answer, or it cannot take the weights.
    """
    if isinstance(config, TransformersEngineConfig):
        from rest_core.rollout.transformers_engine import TransformersEngine

        return TransformersEngine.copy_of(
            master, dtype=dtype, stop_ids=stop_ids(tokenizer), pad_id=tokenizer.pad_token_id
        )
    from rest_core.rollout.vllm_sampling import Vocabulary

    vocabulary = Vocabulary(master.get_input_embeddings().num_embeddings, stop_ids(tokenizer))
    engine: Engine
    if isinstance(config, VllmServerConfig):
        from rest_core.rollout.vllm_server import VllmServerEngine

        engine = VllmServerEngine(config, dtype=dtype, vocabulary=vocabulary, setting=setting)
    else:
        from rest_core.model.parameters import without_wrapper
        from rest_core.rollout.vllm_engine import VllmEngine

        architecture = without_wrapper(master).config
        engine = VllmEngine(
            architecture, config, dtype=dtype, vocabulary=vocabulary, max_tokens=max_tokens, setting=setting
        )
    engine.synchronise(master, 0)
    return engine
