"""Several processes under `accelerate launch`: DDP or FSDP2, as its configuration file says."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, broadcast_object_list, gather_object
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor

from rest_core.errors import UserError
from rest_core.model.parameters import whole
from rest_core.processes import is_main_process

T = TypeVar("T")
_PLAIN = {DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU}


def create_accelerator(*, half: bool) -> Accelerator:
    """The accelerator of this process; with `half` it computes in bfloat16 on float32 master weights.

    Raises:
        UserError: the launcher's configuration asks for something that this training does not do.
    """
    precision = "bf16" if half else "no"
    # Explicit: without it, accelerate takes several processes without a GPU for as many trainings of their own.
    cpu = not torch.accelerator.is_available()
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() != "true":  # what `accelerate launch` sets
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu)
        if accelerator.distributed_type not in _PLAIN:
            raise UserError(
                f"accelerate's {accelerator.distributed_type.value} is not supported: launch with "
                "configs/accelerate/ddp.yaml or configs/accelerate/fsdp2.yaml"
            )
        return accelerator
    plugin = FullyShardedDataParallelPlugin()
    _require_supported(plugin)
    # Gradients are summed over processes in float32; the loss and log-probs leave the model as they are.
    plugin.mixed_precision_policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if half else MixedPrecisionPolicy()
    )
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu, fsdp_plugin=plugin)
    if accelerator.distributed_type is DistributedType.MULTI_CPU:
        # accelerate turns FSDP on for GPUs only; all that it does then works on CPUs (gloo) all the same.
        accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    return accelerator


def _require_supported(plugin: FullyShardedDataParallelPlugin) -> None:
    for setting, refused, instead in (
        ("fsdp_version", plugin.fsdp_version != 2, "2"),
        ("fsdp_cpu_ram_efficient_loading", plugin.cpu_ram_efficient_loading, "false"),
        ("fsdp_activation_checkpointing", plugin.activation_checkpointing, "false, and rl.gradient_checkpointing"),
        ("fsdp_offload_params", type(plugin.cpu_offload).__name__ == "CPUOffloadPolicy", "false"),
    ):
        if refused:
            raise UserError(f"accelerate's configuration: this training needs {setting}: {instead}")


def prepare(accelerator: Accelerator, policy: Any, optimizer: torch.optim.Optimizer) -> tuple[Any, Any]:
    """Wrap a policy and its optimizer for the processes; with FSDP2 the parameters become shards in place."""
    _name_layers(policy)
    wrapped, prepared = accelerator.prepare(policy, optimizer)
    return wrapped, prepared


def prepare_frozen(accelerator: Accelerator, policy: Any) -> Any:
    """The same for a policy that is not trained: sharded where the trained one is, else left as it is."""
    if not accelerator.is_fsdp2:
        return policy
    _name_layers(policy)
    return fsdp2_prepare_model(accelerator, policy)


def _name_layers(policy: Any) -> None:
    """Tell accelerate's transformer wrap policy which modules are layers: it asks the outermost module."""
    present = {type(module).__name__ for module in policy.modules()}
    named = [name for module in policy.modules() for name in getattr(module, "_no_split_modules", None) or ()]
    policy._no_split_modules = sorted(present.intersection(named))


def gather_lists(accelerator: Accelerator, values: list[Any]) -> list[Any]:
    """The lists of all processes joined, in their order; every process calls it."""
    joined: list[Any] = gather_object(values) if accelerator.num_processes > 1 else values
    return joined


def on_first(function: Callable[[], T]) -> T:
    """Call `function` in the first process; every process gets its result, or raises its `UserError`."""
    outcome: list[Any] = [None, None]
    if is_main_process():
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    result: T = outcome[0]
    return result


def gather_weights(model: Any) -> None:
    """Make the shards of `model` whole parameters again, on the CPU of the first process, to be saved; in place.

    Every process calls it; those of the others stay as they are. Nothing happens where nothing is sharded.
    """
    made: dict[int, Any] = {}  # tied parameters stay one
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in made:
                values = whole(parameter)
                made[id(parameter)] = nn.Parameter(values.cpu(), False) if is_main_process() else parameter
            setattr(module, name, made[id(parameter)])
