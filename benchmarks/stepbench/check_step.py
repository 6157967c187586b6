"""One optimizer update on the GPU against the same on the machine's processor, in float32 and on the same rollouts.

Each side is a process of its own and runs what training runs, `PolicyUpdate`; the GPU's side samples the rollouts.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from rest_core.config import RlConfig
from rest_core.model.batch import pad_rows
from rest_core.model.logprobs import Policy
from rest_core.records import Rollout
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.training.distributed import create_accelerator, prepare
from rest_core.training.update import Experience, PolicyUpdate

from .arms import ask
from .checking import Check, Found, Progress, random_rollouts, relative
from .measure import Clock
from .models import model_of, tokenizer_of
from .work import Work

WORK = {
    # As long a row as in `check_attention`, so that its kernels are there already.
    "cuda": Work("step", prompts=2, prompt_tokens=400, group=4, new_tokens=96),
    "cpu": Work("step", prompts=2, prompt_tokens=12, group=3, new_tokens=8),
}
# Both add up the same float32 products in another order; through 30 layers forward and backward that is about 1e-5.
LOSS, GRADIENTS = 1e-4, 5e-4
_ORDER = "float32 in another order: about 1e-5; another formula, precision or mask is off by 1e-3 and more"


def check(spec: dict[str, Any], work: Work, progress: Progress) -> Found:
    """`spec` is that of any side: model, tokenizer, device and threads."""
    with tempfile.TemporaryDirectory() as folder:
        common = spec | {"side": "update", "work": work.to_dict(), "folder": folder}
        answers = {
            device: ask(common | {"device": device, "name": name}, f"the update on {device}", progress)
            for name, device in (("first", spec["device"]), ("second", "cpu"))
        }
        first, second = (torch.load(Path(folder) / f"{name}.pt", weights_only=True) for name in ("first", "second"))
    return Found(compare(first, second), {"sides": answers})


def compare(found: dict[str, Any], wanted: dict[str, Any]) -> list[Check]:
    """Two results of `update`, the second of which is right."""
    checks = [
        Check("difference of the loss", abs(found["loss"] - wanted["loss"]), LOSS, f"{_ORDER}; advantages are about 1"),
        Check(
            "relative difference of the gradient norm",
            abs(found["grad_norm"] / wanted["grad_norm"] - 1),
            GRADIENTS,
            _ORDER,
        ),
    ]
    return checks + [
        Check(f"relative difference of the gradient of {name}", relative(gradient, value), GRADIENTS, _ORDER)
        for name, value in wanted["gradients"].items()
        for gradient in [found["gradients"][name]]
    ]


def update(spec: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """One side: samples the rollouts, or takes those that are there, and updates the policy once."""
    work, folder = Work(**spec["work"]), Path(spec["folder"])
    clock = Clock(device)
    accelerator = create_accelerator(half=False)
    if accelerator.device.type != device.type:
        raise RuntimeError(f"accelerate has chosen {accelerator.device}, {device} was asked for")
    model = model_of(spec["model"], tokenizer_of(spec["model"], spec["tokenizer"])).to(device).train()
    rollouts = _rollouts(folder / "rollouts.json", model, work)
    config = RlConfig(prompts_per_step=work.prompts, group_size=work.group, learning_rate=1e-6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    gradients: dict[str, torch.Tensor] = {}

    def keep(*_: Any) -> None:
        last = model.config.num_hidden_layers - 1
        chosen = tuple(f"layers.{number}." for number in sorted({0, last // 2, last}))
        for name, parameter in model.named_parameters():
            if any(place in name for place in chosen) or name.endswith("model.norm.weight"):
                assert parameter.grad is not None
                gradients[name] = parameter.grad.detach().cpu().clone()

    optimizer.register_step_pre_hook(keep)
    policy, prepared = prepare(accelerator, Policy(model), optimizer)
    begin = clock.now()
    statistics = PolicyUpdate(policy, prepared, accelerator, config, pad_id=0).run(_experience(rollouts, work))
    seconds = clock.now() - begin
    result = {"loss": statistics.loss, "grad_norm": statistics.grad_norms[0], "gradients": gradients}
    torch.save(result, folder / f"{spec['name']}.pt")
    return {
        "device": str(device),
        "seconds": seconds,
        "tokens": statistics.computed,
        "shared": policy.shared,
        "loss": statistics.loss,
        "grad_norm": statistics.grad_norms[0],
        "metrics": statistics.metrics(),
    }


def _rollouts(file: Path, model: Any, work: Work) -> list[Rollout]:
    if not file.exists():
        vocabulary = model.get_input_embeddings().num_embeddings
        prompts = [rollout.prompt_ids for rollout in random_rollouts(work, vocabulary)[:: work.group]]
        engine = TransformersEngine.copy_of(model, dtype=torch.float32, stop_ids=frozenset(), pad_id=0)
        made = engine.generate(
            prompts, samples=work.group, max_new_tokens=work.new_tokens, seeds=list(range(len(prompts)))
        )
        file.write_text(json.dumps([dataclasses.asdict(rollout) for group in made for rollout in group]))
    return [Rollout(**fields) for fields in json.loads(file.read_text())]


def _experience(rollouts: list[Rollout], work: Work) -> Experience:
    """Advantages by the place in the group, weights that differ from token to token."""
    mask = pad_rows([[1] * len(rollout.response_ids) for rollout in rollouts], work.new_tokens, torch.bool)
    places = torch.arange(work.group, dtype=torch.float32).repeat(work.prompts)
    advantages = (places - places.mean()) / places.std()
    weights = 0.5 + torch.arange(mask.numel()).reshape(mask.shape) % 7 / 4
    return Experience(rollouts, advantages, torch.zeros(mask.shape, dtype=torch.int64), mask, weights)
