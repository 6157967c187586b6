"""A linear map from gradients of all parameters to few numbers that keeps scalar products."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SIZE = 32_771  # a prime, so that no column of a weight matrix falls onto itself again and again


class Sketch:
    """Each coordinate with a random sign, added up modulo `size` (a count sketch with a fixed order).

    The expectation of two sketches' product over the signs is the product of the vectors; its standard deviation is at
    most about sqrt(2 / size) of the product of their norms, 0.8 % here.

    Args:
        counts: numbers of elements of the tensors that a vector has.
        scale: (sum(counts),) what each coordinate is multiplied by before; None = 1.
    """

    def __init__(self, counts: Sequence[int], *, scale: Tensor | None = None, size: int = SIZE, seed: int = 0) -> None:
        self.size = size
        generator = torch.Generator().manual_seed(seed)
        signs = torch.randint(0, 2, (sum(counts),), generator=generator, dtype=torch.int8) * 2 - 1
        self._signs = (signs.float() if scale is None else signs * scale).split(list(counts))
        self._signed = torch.zeros(-(-sum(counts) // size) * size)  # the vector, padded to whole rows of `size`
        self._places = self._signed[: sum(counts)].split(list(counts))

    def __call__(self, vector: Sequence[Tensor]) -> Tensor:
        """(size,) float32 of one vector, given as tensors of any shape."""
        for part, signs, place in zip(vector, self._signs, self._places, strict=True):
            torch.mul(part.flatten(), signs, out=place)
        return self._signed.view(-1, self.size).sum(0)
