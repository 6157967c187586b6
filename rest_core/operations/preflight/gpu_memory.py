"""The least GPU memory that a training takes, from the model's architecture and the configuration.

Counted is memory that is certainly in use at once, in bytes a GPU:

    master weights   4 a parameter (float32, frozen ones too)
    gradients        4 a trained parameter
    AdamW            8 a trained parameter (two moments in float32)
    rollout copy     2 or 4 a parameter (the compute type), where transformers samples on the same GPU
    reference        4 a parameter, with a KL penalty
    activations      hidden size x layers x tokens of a full forward pass x 2 or 4 (gradient checkpointing keeps them)

So 16 bytes a trained parameter, and the copy. Attention, logits, caches and fragmentation come on top: a GPU with less
is too small, one with more may still be.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rest_core import storage
from rest_core.config import ModelConfig, RlConfig, SftConfig, TransformersEngineConfig

GIB = 2**30


@dataclass(frozen=True)
class Architecture:
    """The sizes of a model that decide its memory."""

    parameters: int  # tied ones counted once
    trained: int  # with LoRA the adapters' alone
    hidden_size: int
    layers: int


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU by their use."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.parts.items() if size)
        return f"at least {self.total / GIB:.1f} GiB a GPU ({listed})"


def training_memory(
    architecture: Architecture, section: SftConfig | RlConfig, dtype: str, *, tokens: int, shards: int = 1
) -> Memory:
    """The memory that a training holds on each GPU.

    Args:
        architecture: of the model, with its adapters.
        section: the stage's configuration.
        dtype: the compute type, `model.dtype`.
        tokens: of one forward pass.
        shards: over how many GPUs FSDP2 shards the trained model; 1 with DDP.
    """
    compute = {"bfloat16": 2, "float32": 4}[dtype]
    rl = section if isinstance(section, RlConfig) else None
    copy = rl is not None and isinstance(rl.engine, TransformersEngineConfig)
    reference = rl is not None and rl.loss.kl_coefficient > 0
    return Memory(
        {
            "master weights": 4 * architecture.parameters // shards,
            "gradients": 4 * architecture.trained // shards,
            "AdamW": 8 * architecture.trained // shards,
            "rollout copy": compute * architecture.parameters if copy else 0,
            "reference": 4 * architecture.parameters // shards if reference else 0,
            "activations": compute * architecture.hidden_size * architecture.layers * tokens,
        }
    )


def stage_memory(source: str | Path, model: ModelConfig, section: SftConfig | RlConfig, *, shards: int = 1) -> Memory:
    """The same for a stage; of the model only config.json is read."""
    tokens = 0  # of the warm-up: as long as its longest samples, which are not known before the data is read
    if isinstance(section, RlConfig):
        responses = section.prompts_per_step * section.group_size
        tokens = min(section.micro_batch_tokens, responses * section.max_response_tokens)
    architecture = read_architecture(source, model, section)
    return training_memory(architecture, section, model.dtype, tokens=tokens, shards=shards)


def read_architecture(source: str | Path, model: ModelConfig, section: SftConfig | RlConfig) -> Architecture:
    """Build the model without memory (torch's meta device) and count."""
    import torch
    from transformers import AutoModelForCausalLM

    from rest_core.model.loading import with_lora

    config = _read_config(source, model)
    with torch.device("meta"):
        empty: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
        parameters = sum(parameter.numel() for parameter in empty.parameters())
        if section.lora is not None:
            empty = with_lora(empty, section.lora)
    return Architecture(
        parameters=parameters,
        trained=sum(parameter.numel() for parameter in empty.parameters() if parameter.requires_grad),
        hidden_size=config.get_text_config().hidden_size,
        layers=config.get_text_config().num_hidden_layers,
    )


def _read_config(source: str | Path, model: ModelConfig) -> Any:
    from rest_core.data.hub import hub_errors
    from rest_core.model.loading import resolve

    if storage.is_s3(str(source)):
        with tempfile.TemporaryDirectory() as folder:
            storage.get_file(f"{str(source).rstrip('/')}/config.json", Path(folder) / "config.json")
            return _tried(folder, source, model)
    where = resolve(source)
    with hub_errors(where, "model", model.revision):
        return _tried(where, source, model)


def _tried(where: str, source: str | Path, model: ModelConfig) -> Any:
    from rest_core.model.loading import read_config
    from rest_core.model.trial import require_sound

    require_sound(where, source, model, steps=("config",))
    return read_config(where, source, model)
