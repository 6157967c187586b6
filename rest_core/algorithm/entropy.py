"""Running mean policy entropy of each region, fed from the training forward."""

from __future__ import annotations

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
