"""Running mean policy entropy of each region, fed from the training forward."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rest_core.algorithm.regions import Region


def region_sums(values: Tensor, regions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Sums and counts of token values by region, both (len(Region),) float64; addable over micro-batches.

    Args:
        values, regions, mask: (B, T) each; only tokens inside the mask count.
    """
    inside = mask.bool()
    codes = regions[inside].reshape(-1).cpu()
    sums = torch.zeros(len(Region), dtype=torch.float64)
    sums.index_add_(0, codes, values.detach()[inside].reshape(-1).double().cpu())
    return sums, torch.bincount(codes, minlength=len(Region)).double()


class RunningRegionEntropy:
    """Exponential running mean over steps of each region's mean entropy (nats); NaN until a region is seen."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.mean = torch.full((len(Region),), float("nan"), dtype=torch.float64)

    @property
    def empty(self) -> bool:
        return bool(self.mean.isnan().all())

    def update(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Take in one step's sums and counts (len(Region),); returns the step's own means, NaN where none."""
        step_mean = sums / counts  # 0 / 0 is NaN: a region without tokens in this step
        blended = self.momentum * self.mean + (1 - self.momentum) * step_mean
        self.mean = torch.where(step_mean.isnan(), self.mean, torch.where(self.mean.isnan(), step_mean, blended))
        return step_mean

    def state(self) -> dict[str, Any]:
        """JSON values by region name; null for a region that has not been seen."""
        values = {region.name: float(self.mean[region]) for region in Region}
        return {name: None if math.isnan(value) else value for name, value in values.items()}

    def load_state(self, state: dict[str, Any]) -> None:
        values = [math.nan if state[region.name] is None else float(state[region.name]) for region in Region]
        self.mean = torch.tensor(values, dtype=torch.float64)
