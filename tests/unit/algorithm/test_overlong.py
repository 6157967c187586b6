from __future__ import annotations

import torch

from rest_core.algorithm.overlong import overlong_penalty


def test_the_penalty_by_hand() -> None:
    """Nothing up to 100 - 20 tokens, then a twentieth of 0.5 for each."""
    tokens = torch.tensor([[1, 80, 81], [90, 99, 100]])
    given = overlong_penalty(tokens, limit=100, buffer=20, penalty=0.5)
    assert given.tolist() == [[0, 0, -0.025], [-0.25, -0.475, -0.5]]
    assert overlong_penalty(torch.tensor([50]), limit=100, buffer=100, penalty=1.0).tolist() == [-0.5]
