"""A model's trained weights and its optimizer's moments as plain whole tensors, and back: the one place that knows how
parameters are laid out over processes.

Parameters may be ordinary tensors (one process, DDP: every process has them all) or DTensors (FSDP2: every process has
a shard). Both functions are collectives: every process calls them. The first process alone gets, and gives, content,
so that checkpoints are read and written in one place.

Why not `torch.distributed.checkpoint.state_dict`: its `get_optimizer_state_dict` takes an optimizer step with zero
gradients where the optimizer has no state yet, which counts as one in AdamW's bias correction; a checkpoint of step 0
would change the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from rest_core.model.parameters import whole
from rest_core.processes import is_main_process

Tensors = dict[str, Tensor]


def trained(model: Any) -> Tensors:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def full_state(model: Any, optimizer: torch.optim.Optimizer) -> tuple[Tensors, Tensors]:
    """Parameters by name and moments by "key/name", on the CPU; empty on all processes but the first.

    A tensor that lies whole in this process's main memory is not copied: write it out before training continues.
    """
    parameters: Tensors = {}
    moments: Tensors = {}
    for name, parameter in trained(model).items():
        _keep(parameters, name, parameter)
        for key, value in optimizer.state.get(parameter, {}).items():
            _keep(moments, f"{key}/{name}", torch.as_tensor(value))
    return parameters, moments


@torch.no_grad()
def load_full_state(
    model: Any, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], moments: Mapping[str, Tensor]
) -> None:
    """The reverse of `full_state`: what processes other than the first pass is not looked at."""
    own = trained(model)
    load_parameters(model, parameters)
    optimizer.state.clear()
    # AdamW counts steps in one float32 number a parameter: few enough to be broadcast all at once.
    counts = {entry: float(value) for entry, value in moments.items() if entry.startswith("step/")}
    entries: list[Any] = [(sorted(moments), counts)]
    broadcast_object_list(entries)
    names, counts = entries[0]
    on_device = {id(p) for g in optimizer.param_groups for p in g["params"] if g.get("fused") or g.get("capturable")}
    for entry in names:
        key, _, name = entry.partition("/")
        parameter = own[name]
        if key == "step":
            device = parameter.device if id(parameter) in on_device else torch.device("cpu")
            value = torch.tensor(counts[entry], dtype=torch.float32, device=device)
        else:
            value = _placed(moments.get(entry), parameter)
        optimizer.state[parameter][key] = value


@torch.no_grad()
def load_parameters(model: Any, parameters: Mapping[str, Tensor]) -> None:
    """Copy the first process's whole `parameters` into those of the model, on every process."""
    for name, parameter in trained(model).items():
        parameter.copy_(_placed(parameters.get(name), parameter))


def _keep(out: Tensors, name: str, tensor: Tensor) -> None:
    gathered = whole(tensor)  # a collective
    if is_main_process():
        own = gathered.cpu().contiguous()
        # A view would be refused by safetensors where it shares its memory with another one.
        out[name] = own if own.untyped_storage().nbytes() == own.nbytes else own.clone()


def _placed(whole: Tensor | None, like: Tensor) -> Tensor:
    """The first process's `whole` tensor, laid out as `like` on every process."""
    shape, device = tuple(like.shape), PartialState().device  # a DTensor's own shape is that of the whole
    if is_main_process():
        assert whole is not None and tuple(whole.shape) == shape
        full = whole.to(device=device, dtype=like.dtype, copy=True)  # what was read may be mapped from a file
    else:
        full = torch.empty(shape, dtype=like.dtype, device=device)
    full = broadcast(full).to(like.device)
    if isinstance(like, DTensor):
        return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)
    return full
