"""A model's parameters below what wraps them: adapters (peft), shards (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor


def without_wrapper(model: Any) -> Any:
    """The model below peft's wrapper, else the model itself; its layers are still the adapted ones."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def without_adapters(model: Any) -> Any:
    """The model itself, its LoRA adapters (peft) merged into its parameters; `model` is changed."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def whole(tensor: Tensor) -> Tensor:
    """A tensor's values without gradient, gathered where it is sharded: then a collective."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach()


@torch.no_grad()
def merged_parameters(master: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters that `without_adapters` would give; `master` stays as it is.

    A tied parameter comes under each of its names. One that is sharded over processes is gathered when its turn comes:
    then every process has to go through all of them.
    """
    root = without_wrapper(master)
    modules = dict(root.named_modules(remove_duplicate=False))
    adapted = {name for name, module in modules.items() if hasattr(module, "get_delta_weight")}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        owner = next((part for part in _parents(name) if part in adapted), None)
        if owner is None:
            yield name, whole(parameter)
        elif name.startswith(f"{owner}.base_layer."):
            value = whole(parameter)
            leaf = name.removeprefix(f"{owner}.base_layer.")
            if leaf == "weight":
                for adapter in modules[owner].active_adapters:
                    value = value + whole(modules[owner].get_delta_weight(adapter)).to(value.dtype)
            yield f"{owner}.{leaf}", value


def _parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))


@torch.no_grad()
def checkpoint_tensors(master: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name → tensor in `dtype`, as a checkpoint of the architecture would hold them; `master` stays as it is.

    Adapters are merged before the cast and tied parameters come once. With parameters that are sharded over processes
    every process calls this at the same time.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = without_wrapper(master)
    names = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}  # of a tied one the first
    tensors = {name: value.to(dtype) for name, value in merged_parameters(master) if name in names}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in parameters:  # a buffer that belongs to the checkpoint
            tensors[name] = value.to(dtype) if value.is_floating_point() else value
    # Some architectures are held in another form than their checkpoints have (fused experts): back to that form.
    return dict(revert_weight_conversion(model, tensors))
