"""The weights of a policy as a checkpoint would hold them, for an engine that is not this process's own model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def policy_weights(model: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name → weight in `dtype`, under the names of the architecture's checkpoints; nothing in `model` is changed.

    Adapters (peft) are merged in float32 before the cast, tied weights appear once, shards (DTensor) are gathered:
    with a sharded model every process must call this at the same time.
    """
    from transformers.core_model_loading import revert_weight_conversion

    base = without_adapters(model)
    adapted = {name: module for name, module in base.named_modules() if hasattr(module, "get_delta_weight")}
    every = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    parameters = dict(base.named_parameters())  # tied weights once
    buffers = {name: tensor for name, tensor in base.state_dict().items() if name not in every}  # persistent ones
    weights: dict[str, Tensor] = {}
    for name, tensor in {**parameters, **buffers}.items():
        owner = next((prefix for prefix in adapted if name.startswith(f"{prefix}.")), None)
        value = _whole(tensor)
        if owner is not None:
            inner = name.removeprefix(f"{owner}.")
            if not inner.startswith("base_layer."):
                continue  # a part of the adapter itself
            name = f"{owner}.{inner.removeprefix('base_layer.')}"
            if name == f"{owner}.weight":
                layer = adapted[owner]
                for adapter in layer.active_adapters:
                    value = value + _whole(layer.get_delta_weight(adapter))
        weights[name] = value.detach().to(dtype) if value.is_floating_point() else value.detach()
    # Some architectures are held in another form than their checkpoints have (fused experts): back to that form.
    return dict(revert_weight_conversion(base, weights))


def without_adapters(model: Any) -> Any:
    """The model itself below peft's wrapper; its layers are still the adapted ones."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor (FSDP) gathered from all processes; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    whole: Tensor = gather() if gather is not None else tensor
    return whole
