"""What is measured: prompts of an exact length, responses of a forced length, the model, each side's settings."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from rest_core.config import EMBEDDED_MODEL, ModelConfig, load
from rest_core.errors import UserError
from rest_core.model.loading import load_model, load_tokenizer
from rest_core.model.precision import compute_dtype

OURS, AGAINST, TRL_BEST = "ours", "against", "trl-best"
ARMS = (OURS, TRL_BEST, "trl-default")
PROFILE = load("smollm2-135m").rl
# Shapes as published in the config.json of the checkpoints of the same name; `small` ends on a laptop.
SHAPES: dict[str, dict[str, Any]] = yaml.safe_load("""
random:qwen3-0.6b: &qwen3 {model_type: qwen3, num_attention_heads: 16, num_key_value_heads: 8, head_dim: 128,
  num_hidden_layers: 28, vocab_size: 151936, max_position_embeddings: 40960, rms_norm_eps: 1.0e-6, hidden_size: 1024,
  intermediate_size: 3072, rope_parameters: {rope_type: default, rope_theta: 1.0e+6}, tie_word_embeddings: true}
random:qwen3-1.7b: {<<: *qwen3, hidden_size: 2048, intermediate_size: 6144}
random:smollm2-135m: {model_type: llama, num_attention_heads: 9, num_key_value_heads: 3, num_hidden_layers: 30,
  vocab_size: 49152, max_position_embeddings: 8192, rms_norm_eps: 1.0e-5, hidden_size: 576, intermediate_size: 1536,
  rope_parameters: {rope_type: default, rope_theta: 1.0e+5}, tie_word_embeddings: true}
random:small: {model_type: llama, num_attention_heads: 4, num_key_value_heads: 2, num_hidden_layers: 6,
  vocab_size: 49152, max_position_embeddings: 4096, hidden_size: 256, intermediate_size: 768, tie_word_embeddings: true}
""")
_SYSTEM = (
    "You can call tools. Think inside <think></think>, then answer with <tool_call>{...}</tool_call> or "
    "<response></response>. Tools: " + '{"name":"weather_now","parameters":{"place":"str","day":"str"}} '
    '{"name":"find_flights","parameters":{"from":"str","to":"str"}} ' * 100
)


@dataclass(frozen=True)
class Work:
    """One step's work: `prompts` prompts of `prompt_tokens` tokens, `group` responses each of exactly `new_tokens`.

    Where `stops`, responses end where the model ends them, and `new_tokens` is the longest.
    """

    name: str
    prompts: int
    prompt_tokens: int
    group: int
    new_tokens: int
    stops: bool = False

    @property
    def responses(self) -> int:
        return self.prompts * self.group

    @property
    def generated(self) -> int:
        """Tokens that are sampled in a step; the same are trained."""
        return self.responses * self.new_tokens


def works_of(device: str) -> dict[str, Work]:
    """All works by name. On a CPU they are smaller, so that a step of TRL ends in about two minutes."""
    cpu = device == "cpu"
    works = [
        Work("a", 4, 163, 4, 64),
        Work("b4", 2 if cpu else 64, 750, 4, 390),
        Work("b8", 1 if cpu else 32, 750, 8, 390),
        Work("training", 1 if cpu else 64, 750, PROFILE.group_size, PROFILE.max_response_tokens, stops=True),
    ]
    return {work.name: work for work in works}


def settings_of(arm: str, device: str, work: str) -> dict[str, Any]:
    """Fields of `RlConfig` (ours) or `GRPOConfig` (TRL) with which a side runs unless others are given."""
    if arm in (OURS, AGAINST):
        if device == "cpu":  # small passes that divide a group: more computing, less memory
            return {"micro_batch_tokens": 1024 if work == "a" else 1536}
        budgets = PROFILE.model_dump(include={"micro_batch_tokens", "rollout_batch_tokens"})
        return budgets if work == "training" else {}
    # Both sides compute in the same type: bfloat16, but on a CPU that cannot multiply it.
    same = {"bf16": False} if device == "cpu" and compute_dtype(ModelConfig()) is torch.float32 else {}
    # The fastest of those that were tried.
    best = {"gradient_checkpointing": False, "per_device_train_batch_size": 4 if device == "cpu" else 16}
    return same | best if arm == TRL_BEST else same


def tokenizer_of(source: str, tokenizer: str | None) -> Any:
    """The tokenizer of a model; a random one has the embedded model's, unless a directory is given."""
    where = tokenizer or (EMBEDDED_MODEL if source in SHAPES else source)
    return load_tokenizer(where, ModelConfig(source=where))


def model_of(source: str, tokenizer: Any) -> Any:
    """The model in float32: a checkpoint, or a shape with random weights, the same each time."""
    if source not in SHAPES:
        return load_model(source, ModelConfig(source=source))
    ids = {f"{which}_token_id": getattr(tokenizer, f"{which}_token_id") for which in ("bos", "eos", "pad")}
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(**SHAPES[source], **ids), dtype=torch.float32)


def encode(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """The prompt's ids, as both sides make them: the chat template with a generation prompt behind it."""
    ids: list[int] = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    return ids


def conversation(tokenizer: Any, number: int, tokens: int) -> list[dict[str, str]]:
    """Prompt `number` with exactly `tokens` tokens: the system message is cut where it fits."""

    def messages(end: int) -> list[dict[str, str]]:
        question = f"Request {number + 1}: how warm is it in Paris now, in celsius?"
        return [{"role": "system", "content": _SYSTEM[:end]}, {"role": "user", "content": question}]

    def length(end: int) -> int:
        return len(encode(tokenizer, messages(end)))

    near = bisect_left(range(len(_SYSTEM)), tokens - 3, key=length)  # lengths grow, with few exceptions
    for end in range(near, min(near + 99, len(_SYSTEM))):
        if length(end) == tokens:
            return messages(end)
    raise UserError(f"no prompt has exactly {tokens} tokens with this tokenizer: the shortest has {length(0)}")
