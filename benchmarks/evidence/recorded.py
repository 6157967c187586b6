"""Recorded rollouts of one policy, and the weights that each scheme gives their tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rest_core.algorithm.entropy import RunningRegionEntropy
from rest_core.algorithm.regions import Region
from rest_core.algorithm.weights import relative_frequency, token_weights
from rest_core.config import PaperWeights, TokenEntropyWeights, WeightsConfig
from rest_core.model.batch import pad_rows
from rest_core.records import Rollout

UNIFORM = "uniform"
_STEPS = 100  # progress of the curriculum in per cent: a step each
# Name -> (a scheme of the project with its settings, the step of _STEPS at which it is taken).
_SCHEMES: dict[str, tuple[str | WeightsConfig, int]] = {
    UNIFORM: ("uniform", 1),
    "paper, start": (PaperWeights(), 0),
    "paper, middle": (PaperWeights(), 50),
    "paper, end": (PaperWeights(), 100),
    "paper, no curriculum": (PaperWeights(curriculum=False), 0),
    "1/H, no curriculum": (PaperWeights(curriculum=False, rule="inverse"), 0),
    "token entropy": (TokenEntropyWeights(), 1),
    "token entropy, 1/H": (TokenEntropyWeights(rule="inverse"), 1),
    "official": ("official", 1),
    "mask_only": ("mask_only", 1),
    "name_boost": ("name_boost", 1),
    "high_entropy": ("high_entropy", 1),
    "frequency": ("frequency", 1),
}
PARTS = tuple(f"part {region.name}" for region in Region)  # uniform's gradient is their sum
SCHEMES = (*_SCHEMES, *PARTS)


class Recorded:
    """Groups of responses as recorded: B = groups x G rows, padded to the longest response, T."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._groups = groups
        self.size = len(groups[0]["responses"])  # G
        responses = [ids for group in groups for ids in group["responses"]]
        width = max(map(len, responses))

        def table(name: str, dtype: torch.dtype, fill: float = 0) -> Tensor:
            return pad_rows([row for group in groups for row in group[name]], width, dtype, fill)

        self.lengths = torch.tensor([len(ids) for ids in responses])  # (B,)
        self.ids = table("responses", torch.int64)  # (B, T)
        self.regions = table("regions", torch.int64, Region.OTHER)  # (B, T)
        self.entropies = table("entropies", torch.float32)  # (B, T) nats
        self.mask = torch.arange(width) < self.lengths[:, None]  # (B, T)
        self.advantages = torch.tensor([value for group in groups for value in group["advantages"]])  # (B,)

    def rows(self, group: int) -> list[int]:
        """The rows of a group."""
        return list(range(group * self.size, (group + 1) * self.size))

    def rollouts(self, group: int) -> list[Rollout]:
        """The responses of a group, as a forward pass takes them."""
        return [self.rollout(row) for row in self.rows(group)]

    def rollout(self, row: int) -> Rollout:
        """One response with its prompt."""
        group = self._groups[row // self.size]
        ids = group["responses"][row % self.size]
        return Rollout(group["prompt"], ids, [0.0] * len(ids), finished=True, policy_version=0)

    def with_signal(self) -> list[int]:
        """The groups whose rewards are not all equal; the gradient of the others is 0 under every scheme."""
        return [k for k in range(len(self._groups)) if bool(self.advantages[self.rows(k)].any())]

    @cached_property
    def region_entropy(self) -> Tensor:
        """(len(Region),) mean entropy of each region over all recorded tokens, nats; NaN where it has none."""
        return RunningRegionEntropy(0.9).filled(self.entropies, self.regions, self.mask)

    def weights(self, name: str) -> Tensor:
        """(B, T) the weights of a scheme; of a part, those of `uniform` in its region and 0 elsewhere."""
        if name in PARTS:
            return (self.mask & (self.regions == Region[name.removeprefix("part ")])).float()
        scheme, step = _SCHEMES[name]
        return token_weights(
            self.regions,
            self.mask,
            scheme=scheme,
            step=step,
            total_steps=_STEPS,
            region_entropy=self.region_entropy,
            token_entropy=self.entropies,
            token_frequency=relative_frequency(self.ids, self.mask),
        )

    def loss_weights(self, group: int, weights: Tensor) -> Tensor:
        """(G, T) what the log-probs of a group are multiplied by in its objective.

        Args:
            weights: (B, T) of a scheme.
        """
        rows = self.rows(group)
        return self.advantages[rows, None] * weights[rows] / self.lengths[rows, None] / self.size

    def some_tokens(self, each: int, seed: int) -> list[tuple[int, int]]:
        """(row, column) of at most `each` tokens of every region, drawn without replacement."""
        generator = torch.Generator().manual_seed(seed)
        chosen: list[tuple[int, int]] = []
        for region in Region:
            places = (self.mask & (self.regions == region)).nonzero()
            order = torch.randperm(len(places), generator=generator)[:each]
            chosen += [(int(row), int(column)) for row, column in places[order]]
        return chosen

    def summary(self) -> dict[str, Any]:
        """Counts, lengths, rewards and entropies, for the report."""
        rewards = torch.tensor([value for group in self._groups for value in group["rewards"]])
        shares = torch.bincount(self.regions[self.mask], minlength=len(Region)) / self.mask.sum()
        entropies = {region.name: float(self.region_entropy[region]) for region in Region}
        return {
            "responses": len(self.lengths),
            "group_size": self.size,
            "mean_tokens": float(self.lengths.float().mean()),
            "mean_reward": float(rewards.mean()),
            "region_share": {region.name: float(shares[region]) for region in Region},
            "region_entropy": {name: None if math.isnan(value) else value for name, value in entropies.items()},
        }
