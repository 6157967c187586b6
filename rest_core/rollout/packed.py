"""Linear layers whose bfloat16 weights are kept in the layout in which oneDNN multiplies them.

`torch.nn.functional.linear` on a CPU brings the weight into that layout at each call. Where the batch is a handful of
rows, as in decoding, that takes longer than the product itself. The operators are those that torch's own compiler
uses for the same purpose; results are the same bit by bit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ROWS = 16  # the layout is chosen for about so many rows; any number works


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
    """Whether this machine and torch have the operators, and the model is in bfloat16 on the CPU."""
    weight = next(model.parameters())
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


def pack(model: Any) -> None:
    """Replace every linear layer of `model`; the memory of its weights is freed, but where they are tied."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                setattr(parent, name, PackedLinear(child))
