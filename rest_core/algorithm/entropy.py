"""Running mean policy entropy of each region, fed from the training forward."""

from __future__ import annotations

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
    """Mean entropy (nats) of each region's tokens, those of a step `n` steps ago counting `momentum`ⁿ each.

    Sums and counts decay, not means: a step in which a region has one token says as little about it as one token can.
    """

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self._sums, self._counts = torch.zeros(2, len(Region), dtype=torch.float64).unbind()

    @property
    def mean(self) -> Tensor:
        """(len(Region),) float64; NaN for a region that has not been seen."""
        return self._sums / self._counts  # 0 / 0 is NaN

    def update(self, sums: Tensor, counts: Tensor) -> Tensor:
        """Take in one step's sums and counts (len(Region),); returns the step's own means, NaN where none."""
        self._sums = self.momentum * self._sums + sums
        self._counts = self.momentum * self._counts + counts
        return sums / counts

    def lacks(self, regions: Tensor, mask: Tensor) -> bool:
        """Whether a token inside the mask (B, T) is of a region that has not been seen."""
        return bool((self._counts[regions.cpu()] == 0)[mask.bool().cpu()].any())

    def filled(self, entropies: Tensor, regions: Tensor, mask: Tensor) -> Tensor:
        """The means, with those of a rollout's own tokens (B, T) for the regions that have not been seen."""
        sums, counts = region_sums(entropies, regions, mask)
        return torch.where(self._counts == 0, sums / counts, self.mean)

    def state(self) -> dict[str, Any]:
        """JSON values by region name: the decayed sum and count."""
        return {region.name: (float(self._sums[region]), float(self._counts[region])) for region in Region}

    def load_state(self, state: dict[str, Any]) -> None:
        pairs = torch.tensor([state[region.name] for region in Region], dtype=torch.float64)  # (R, 2)
        self._sums, self._counts = pairs.T.contiguous().unbind()
