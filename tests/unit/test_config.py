"""What a configuration refuses, and how it says so."""

from __future__ import annotations

import pytest

from rest_core.config import RlConfig, load, validate
from rest_core.errors import UserError


@pytest.mark.parametrize("setting", ["top_p=0.9", "top_p=1.0", "top_k=50", "min_p=0.1", "repetition_penalty=1.2"])
def test_a_truncated_sampler_is_refused_with_its_reason(setting: str) -> None:
    name, _, value = setting.partition("=")
    with pytest.raises(UserError, match=rf"rl\.{name}: training samples from the policy's whole distribution"):
        load("quickstart", (f"rl.{setting}",))
    with pytest.raises(UserError, match=rf"rl: {name}: training samples from the policy's whole distribution"):
        validate(RlConfig, {name: float(value)}, where="rl")  # as a stage reads its parameter


def test_elsewhere_the_same_keys_are_merely_unknown() -> None:
    with pytest.raises(UserError, match=r"unknown key 'bfcl\.generation\.top_p'"):
        load("quickstart", ("bfcl.generation.top_p=0.9",))
