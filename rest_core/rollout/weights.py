"""The weights of a master model, as an engine takes them: whole tensors, adapters merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rest_core.model.parameters import whole, without_wrapper


def without_adapters(model: Any) -> Any:
    """The model itself, its LoRA adapters (peft) merged into the weights; `model` is changed."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


@torch.no_grad()
def merged_weights(master: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the weights of `master` as `without_adapters` would have them; `master` stays as it is.

    A tied weight comes under each of its names. A weight that is sharded over processes (one with `full_tensor`) is
    gathered, one at a time; then every process has to go through all of them.
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
