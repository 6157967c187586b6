"""The soft penalty on long responses (DAPO, arXiv 2503.14476, equation 13)."""

from __future__ import annotations

from torch import Tensor


def overlong_penalty(tokens: Tensor, *, limit: int, buffer: int, penalty: float) -> Tensor:
    """What is added to the rewards of responses of so many tokens, in float64.

    0 up to `limit` - `buffer` tokens, from there on linear down to -`penalty` at `limit` tokens, which is where
    sampling stops.
    """
    return penalty * ((limit - buffer - tokens.double()) / buffer).clamp(-1, 0)
