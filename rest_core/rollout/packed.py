"""Linear layers whose weights are kept in the layout in which oneDNN multiplies them.

`torch.nn.functional.linear` on a CPU brings the weight into that layout at each call. Where the batch is a handful of
rows, as in decoding, that takes longer than the product itself. The operators are those that torch's own compiler
uses for the same purpose. Results are the same bit by bit in bfloat16, and within float32's rounding in float32, where
torch's own product adds up in another order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 16  # the layout is chosen for about so many rows; any number works
# A float32 layer with fewer weights than this is not faster packed: oneDNN's overhead is larger than what it saves.
SMALLEST_FLOAT32 = 1 << 18


class PackedLinear(nn.Module):
    """`nn.Linear` for inference on a CPU; its weight is in no `Parameter`, `pack` replaces it."""

    def __init__(self, like: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = like.in_features, like.out_features
        self.dtype = like.weight.dtype
        self.bias = like.bias
        self._packed: Tensor
        self.pack(like.weight)

    @torch.no_grad()
    def pack(self, weight: Tensor) -> None:
        """Take over the weight (out, in) of any floating-point type."""
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(self.dtype).contiguous(), ROWS)

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(inputs, self._packed, self.bias, "none", [], "")


def can_pack(model: Any) -> bool:
    """Whether the model is on the CPU, and this machine and torch have the operators for its type."""
    weight = next(model.parameters())
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
        )
    )


def pack(model: Any) -> None:
    """Replace the linear layers of `model` that are faster so; the memory of their weights is freed, but if tied."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear and _is_faster(child.weight):
                setattr(parent, name, PackedLinear(child))


def _is_faster(weight: Tensor) -> bool:
    return weight.dtype != torch.float32 or weight.numel() >= SMALLEST_FLOAT32
