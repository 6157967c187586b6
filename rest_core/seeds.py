"""Seeds for every use, derived from one: the same use always gets the same seed, so nothing needs to be saved."""

from __future__ import annotations

import hashlib
import random

import numpy
import torch


def derive(seed: int, *use: int | str) -> int:
    """A 63-bit seed for one use, for example `derive(seed, "rollout", step, prompt)`."""
    text = "/".join(map(str, (seed, *use)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed whatever draws without a generator of its own: dropout, and reward functions of users."""
    torch.manual_seed(seed)  # of all devices
    random.seed(seed)
    numpy.random.seed(seed % 2**32)  # noqa: NPY002 (others may use it)
