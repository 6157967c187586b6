"""The model that both sides train: a checkpoint, or an architecture with random weights that needs no download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rest_core.config import EMBEDDED_MODEL, ModelConfig
from rest_core.errors import UserError
from rest_core.model.loading import load_model, load_tokenizer

RANDOM = "random:"
_QWEN3 = {
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 28,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
}
# Shapes as published in the config.json of the checkpoints of the same name.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3-0.6b": ("qwen3", {**_QWEN3, "hidden_size": 1024, "intermediate_size": 3072}),
    "qwen3-1.7b": ("qwen3", {**_QWEN3, "hidden_size": 2048, "intermediate_size": 6144}),
    "smollm2-135m": (
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
        },
    ),
    # Small enough that a scaling run ends on a laptop.
    "small": (
        "llama",
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 49152,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": True,
        },
    ),
}


def tokenizer_of(source: str, tokenizer: str | None) -> Any:
    """The tokenizer of a model; a model of random weights takes the embedded one, unless a folder is given.

    Such a model's vocabulary is larger than that tokenizer's: ids beyond it stand for no text, on both sides.
    """
    where = tokenizer or (EMBEDDED_MODEL if source.startswith(RANDOM) else source)
    return load_tokenizer(where, ModelConfig(source=where))


def model_of(source: str, tokenizer: Any) -> Any:
    """The model in float32, the same weights each time."""
    if not source.startswith(RANDOM):
        return load_model(source, ModelConfig(source=source))
    name = source.removeprefix(RANDOM)
    if name not in SHAPES:
        raise UserError(f"unknown shape {source!r} (known: {', '.join(RANDOM + known for known in SHAPES)})")
    architecture, settings = SHAPES[name]
    ids = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "eos", "pad")}
    config = AutoConfig.for_model(architecture, **settings, **ids)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
