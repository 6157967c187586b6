"""Seeds for every use, derived from one: the same use always gets the same seed, so nothing needs to be saved."""

from __future__ import annotations

import hashlib


def derive(seed: int, *use: int | str) -> int:
    """A 63-bit seed for one use, for example `derive(seed, "rollout", step, prompt)`."""
    text = "/".join(map(str, (seed, *use)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
