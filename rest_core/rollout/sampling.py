"""Drawing tokens by inverting the cumulative distribution: one uniform number a token, no host synchronisation."""

from __future__ import annotations

import torch
from torch import Tensor


def uniforms(seed: int, samples: int, count: int) -> Tensor:
    """(samples, count) uniform numbers in [0, 1): all the randomness of one prompt's responses."""
    return torch.rand(samples, count, generator=torch.Generator().manual_seed(seed))


def sample(
    logits: Tensor, temperature: float, draws: Tensor | None, workspace: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw one token a row: the first whose cumulative probability is above the row's draw.

    Args:
        logits: (B, V).
        temperature: 0 for the most likely token.
        draws: (B,) in [0, 1), one a row; None for temperature 0.
        workspace: (2, B, V), float32, overwritten; memory that one step hands to the next. Taking fresh pages from
            the system at each step costs more than the arithmetic.

    Returns:
        ids (B,), their log-probs (B,) and the entropy (B,), both of the untempered policy (nats, float32). Where a
        row's logits are NaN or +inf its log-prob is NaN, and its id means nothing.
    """
    if workspace is None:
        workspace = torch.empty(2, *logits.shape, device=logits.device)
    scores, probabilities = workspace
    scores.copy_(logits)
    # Below the largest, and finite, so that an impossible token adds 0 · score = 0 to the entropy.
    scores.sub_(scores.amax(dim=-1, keepdim=True)).clamp_min_(-1e30)
    torch.softmax(scores, dim=-1, out=probabilities)
    log_total = -probabilities.amax(dim=-1).log()  # (B,): the largest has score 0
    entropy = log_total - torch.linalg.vecdot(probabilities, scores)
    if draws is None:
        token = logits.argmax(dim=-1)
    else:
        if temperature != 1.0:
            torch.softmax(scores / temperature, dim=-1, out=probabilities)
        cumulative = probabilities.cumsum_(dim=-1)
        total = cumulative[:, -1]
        # Below the total, so that there is such a token; where the sum passes the target, the probability is not 0.
        target = torch.minimum(draws * total, total.nextafter(torch.zeros_like(total)))
        token = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
        token = token.clamp_max(logits.shape[1] - 1)  # among NaN there is no such token
        if logits.is_cuda:
            # A parallel scan adds in another order from place to place: its sum can move at a probability of 0.
            chosen = scores.gather(1, token[:, None])[:, 0] / temperature
            token = torch.where(chosen.exp() > 0, token, logits.argmax(dim=-1))
    return token, scores.gather(1, token[:, None])[:, 0] - log_total, entropy
