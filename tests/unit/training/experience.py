"""Experience made by the real engine on a tiny model, and log-probs computed in the obvious way to hold it against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rest_core.algorithm.regions import Region
from rest_core.model.batch import pad_rows
from rest_core.records import Rollout
from rest_core.rollout.transformers_engine import TransformersEngine
from rest_core.training.update import Experience

PROMPTS = [[5, 6, 7], [11, 12, 13, 14, 15, 16], [21], [31, 32, 33, 34]]
GROUP = 3
ADVANTAGES = [1.1, -0.7, -0.4, 0.5, 0.6, -1.1, 0.0, 0.0, 0.0, -1.2, 0.9, 0.3]  # the third group carries no signal


class Recorder(torch.optim.SGD):
    """Plain gradient descent that keeps the gradients of every step."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.model = model
        self.seen: list[dict[str, Tensor]] = []
        self.rates: list[float] = []

    def step(self, closure: Any = None) -> None:
        self.seen.append({name: p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None})
        self.rates.append(self.param_groups[0]["lr"])
        super().step(closure)


def _rest_of(rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
    """Mask, regions and weights of rollouts: drawn, so that no two tokens count the same."""
    width = max(len(rollout.response_ids) for rollout in rollouts)
    generator = torch.Generator().manual_seed(3)
    regions = torch.randint(0, len(Region), (len(rollouts), width), generator=generator)
    weights = 0.2 + 2 * torch.rand(len(rollouts), width, generator=generator)
    mask = pad_rows([[1] * len(rollout.response_ids) for rollout in rollouts], width, torch.bool)
    return {"mask": mask, "regions": regions, "weights": weights * mask}


def make_experience(model: Any, **changes: Any) -> Experience:
    """Four groups of three responses that the model has sampled; `changes` replaces fields."""
    engine = TransformersEngine(model, stop_ids=frozenset(range(20)), pad_id=264)
    groups = engine.generate(PROMPTS, samples=GROUP, max_new_tokens=10, seeds=[1, 2, 3, 4])
    rollouts = [rollout for group in groups for rollout in group]
    fields = {"rollouts": rollouts, "advantages": torch.tensor(ADVANTAGES), **_rest_of(rollouts), **changes}
    return Experience(**fields)


def token_log_probs(model: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """logp and entropy (T,) of one response from all logits of one row without padding."""
    ids = torch.tensor([[*rollout.prompt_ids, *rollout.response_ids]])
    start = len(rollout.prompt_ids)
    everything = model(input_ids=ids).logits.log_softmax(-1)[0, start - 1 : -1]  # (T, V)
    logp = everything[torch.arange(len(rollout.response_ids)), ids[0, start:]]
    return logp, -(everything.exp() * everything).sum(-1)
