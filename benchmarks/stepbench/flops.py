"""Arithmetic and memory traffic that a step needs, and what a device can do at most.

Counting, for the update (forward and backward): 6 FLOP for each parameter that a token passes through. The input
embedding is a lookup and counts nothing; the language head counts for the positions at which it is applied.
Attention's own products and what checkpointing computes again are left out, so that the figure is a lower bound.

"Computed" tokens are those that were in the forward passes, padding and repeated prompts included; "useful" tokens
are every prompt once and every response once, less its last token, which is no input.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

# Dense bf16 FLOP/s and bytes/s of the memory, as the vendor's data sheets give them; the first name that is found in
# the device's name holds.
CARDS: tuple[tuple[str, float, float], ...] = (
    ("H200", 989.5e12, 4.8e12),
    ("H100 PCIe", 756e12, 2.0e12),
    ("H100 NVL", 835e12, 3.9e12),
    ("H100", 989.5e12, 3.35e12),
    ("A100-SXM4-80GB", 312e12, 2.039e12),
    ("A100 80GB PCIe", 312e12, 1.935e12),
    ("A100", 312e12, 1.555e12),
)


@dataclass(frozen=True)
class Parameters:
    """Parameters by how a token meets them; a tied head is counted once, with the head."""

    body: int
    head: int
    lookup: int  # an input embedding that is not also the head

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def count_parameters(model: Any) -> Parameters:
    head = sum(parameter.numel() for parameter in model.get_output_embeddings().parameters())
    table = model.get_input_embeddings().weight
    tied = model.get_output_embeddings().weight is table
    total = sum(parameter.numel() for parameter in model.parameters())  # a shared tensor is given once
    lookup = 0 if tied else table.numel()
    return Parameters(body=total - head - lookup, head=head, lookup=lookup)


def update_flop(parameters: Parameters, body_tokens: float, head_tokens: float) -> float:
    """FLOP of forward and backward over `body_tokens` tokens with the head applied to `head_tokens` of them."""
    return 6.0 * (parameters.body * body_tokens + parameters.head * head_tokens)


def kv_bytes_per_token(config: Any, element_bytes: int = 2) -> int:
    """Bytes of keys and values that one cached token takes, over all layers."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * width * element_bytes)


def decode_bytes(
    parameters: Parameters, kv_token_bytes: int, *, rows: int, cached: float, element_bytes: int = 2
) -> float:
    """Fewest bytes that one decode step reads: all weights once, and the cache of every row.

    Args:
        rows: responses in the batch.
        cached: cached tokens a row, the mean over the steps that were timed.
    """
    return (parameters.body + parameters.head) * element_bytes + rows * cached * kv_token_bytes


@dataclass(frozen=True)
class Ceiling:
    """What the device can do at most."""

    flops: float  # bf16 FLOP/s
    bandwidth: float  # bytes/s
    source: str  # "data sheet" or "measured"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def ceiling(device: torch.device) -> Ceiling:
    """By the card's name, else measured: a large bf16 product and a large copy."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, flops, bandwidth in CARDS:
            if part in name:
                return Ceiling(flops, bandwidth, "data sheet")
    return Ceiling(_measure_product(device), _measure_copy(device), "measured")


def _measure_product(device: torch.device) -> float:
    size = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / _best_seconds(lambda: left @ right, device)


def _measure_copy(device: torch.device) -> float:
    source = torch.randn(2**28, device=device)  # 1 GiB, far more than any cache holds
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Any, device: torch.device, repeats: int = 5) -> float:
    best = float("inf")
    for _ in range(repeats + 1):  # the first is warm-up, and the slowest
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        best = min(best, time.perf_counter() - begin)
    return best


def synchronize(device: torch.device) -> None:
    """Wait for what was queued on a GPU; a clock that is read before that measures the queueing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
