"""The weights of a policy as a checkpoint would hold them, for an engine that is not a model of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rest_core.model.parameters import without_wrapper
from rest_core.rollout.weights import merged_weights


@torch.no_grad()
def checkpoint_weights(master: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Name → weight in `dtype`, under the names of the architecture's checkpoints; `master` stays as it is.

    Adapters (peft) are merged before the cast and tied weights come once. With weights that are sharded over processes
    every process calls this at the same time.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = without_wrapper(master)
    names = {name.replace(".base_layer.", ".") for name, _ in model.named_parameters()}  # of a tied weight the first
    weights = {name: value.to(dtype) for name, value in merged_weights(master) if name in names}
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, value in model.state_dict().items():
        if name not in parameters:  # a buffer that belongs to the checkpoint
            weights[name] = value.to(dtype) if value.is_floating_point() else value
    # Some architectures are held in another form than their checkpoints have (fused experts): back to that form.
    return dict(revert_weight_conversion(model, weights))
