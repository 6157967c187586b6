"""A model's parameters below what wraps them: adapters (peft), shards (FSDP2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def without_wrapper(model: Any) -> Any:
    """The model below peft's wrapper, else the model itself; its layers are still the adapted ones."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values without gradient, gathered where it is sharded: then a collective."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach()
